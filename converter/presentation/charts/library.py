"""matplotlib, imported and used so that neither it nor the user's settings of it leave a trace."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from converter.errors import DependencyError

#: What makes two runs write the same bytes: names inside an SVG are hashes, by default of random numbers. Text becomes
#: outlines, since the fonts of whoever looks at it are unknown.
_SETTINGS = {"svg.fonttype": "path", "svg.hashsalt": "lensconv"}


@contextmanager
def traceless_import() -> Iterator[None]:
    """While matplotlib is imported, have it write its list of fonts to a folder that is gone afterwards.

    It would write to the user's home, and where that is read-only, warn. A folder that the user chose with
    ``MPLCONFIGDIR`` is left to it.

    Raises:
        DependencyError: what is imported inside the block cannot be.
    """
    if "matplotlib" in sys.modules or os.environ.get("MPLCONFIGDIR"):
        with _import_errors():
            yield
        return
    log = logging.getLogger("matplotlib")
    level = log.level
    with TemporaryDirectory(prefix="lensconv-") as folder:
        os.environ["MPLCONFIGDIR"] = folder
        # It warns of the seconds that the list of fonts may take.
        log.setLevel(logging.ERROR)
        try:
            with _import_errors():
                yield
                import matplotlib

                # It remembers these; otherwise it would look for them where they are first needed.
                matplotlib.get_configdir()
                matplotlib.get_cachedir()
        finally:
            log.setLevel(level)
            del os.environ["MPLCONFIGDIR"]


@contextmanager
def fixed_settings() -> Iterator[None]:
    """Draw with matplotlib's own defaults, whatever the user's are, and set the user's again."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


@contextmanager
def _import_errors() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise DependencyError(f"matplotlib cannot be imported: {error}", "pip install --upgrade matplotlib") from error
