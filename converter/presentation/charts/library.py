"""Import and use matplotlib without files in the user's home, and without the user's settings."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from converter.errors import DependencyError

#: Settings that give the same bytes in every run: names inside an SVG are hashes, by default of random numbers. Text
#: becomes outlines, since the reader may not have the font.
_SETTINGS = {"svg.fonttype": "path", "svg.hashsalt": "lensconv"}


@contextmanager
def traceless_import() -> Iterator[None]:
    """Make matplotlib write its list of fonts to a temporary folder while it is imported.

    By default it writes to the user's home, and warns if that is read-only. A folder that the user chose with
    ``MPLCONFIGDIR`` is used as it is.

    Raises:
        DependencyError: an import inside the block fails.
    """
    if "matplotlib" in sys.modules or os.environ.get("MPLCONFIGDIR"):
        with _import_errors():
            yield
        return
    log = logging.getLogger("matplotlib")
    level = log.level
    with TemporaryDirectory(prefix="lensconv-") as folder:
        os.environ["MPLCONFIGDIR"] = folder
        # It warns that making the list of fonts may take some seconds.
        log.setLevel(logging.ERROR)
        try:
            with _import_errors():
                yield
                import matplotlib

                # It caches these paths; otherwise it would look them up when they are first needed.
                matplotlib.get_configdir()
                matplotlib.get_cachedir()
        finally:
            log.setLevel(level)
            del os.environ["MPLCONFIGDIR"]


@contextmanager
def fixed_settings() -> Iterator[None]:
    """Draw with matplotlib's own defaults, and restore the user's settings afterwards."""
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
