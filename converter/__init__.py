"""Convert the denoising transformer of an image model to SDNQ uint4, check the result, and measure it.

    from pathlib import Path
    from converter import bench, convert, plan, read_suite, verify

    print(plan(Path("Lens")).output_bytes)
    convert(Path("Lens"), Path("Lens-uint4"))
    assert verify(Path("Lens-uint4"), against=Path("Lens")).ok
    assert bench(Path("Lens"), Path("Lens-uint4"), Path("evidence"), read_suite("ten-signs")).ok

Importing this package imports nothing heavy: each name is loaded from its module when it is first used. The names are
listed in ``__init__.pyi``.
"""

import lazy_loader

from converter._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
