"""A corpus of checkpoints and command lines that ``lensconv convert`` must refuse.

A case builds its files in a folder of its own: its source is in ``source``, and its output is to be in ``work``.
``tests/test_malformed.py`` runs every case and compares the whole folder before and after, so that a marker left by an
unpickled file, a changed source or a forgotten staging folder all show as a difference.
"""

from __future__ import annotations

from importlib import import_module

from tests.malformed.site import CASES

__all__ = ["CASES"]

_MODULES = "commands configs headers indexes outputs pipelines recipes sources tensors"
for _name in _MODULES.split():
    import_module(f"{__name__}.{_name}")
