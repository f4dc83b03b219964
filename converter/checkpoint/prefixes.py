"""Prefixes that programs put before the names of all tensors, and that no class of the libraries has."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from converter.errors import UnsupportedCheckpoint, printable

#: The prefixes of ``torch.compile``, of ``DataParallel``, and of single files for the original programs and ComfyUI.
PREFIXES = ("_orig_mod.", "module.", "model.diffusion_model.")
#: What ``torch.compile`` puts into the names below each module that it wraps.
_COMPILED = PREFIXES[0]


def shared_prefix(names: Collection[str], folder: Path) -> str:
    """What can be removed from all names: one or several of the prefixes; empty if the names do not share any.

    Args:
        names: names of tensors, at least one.
        folder: the folder of the checkpoint, for messages.

    Raises:
        UnsupportedCheckpoint: the rest of a name is that of a compiled part of a model.
    """
    found = ""
    while True:
        more = next((found + prefix for prefix in PREFIXES if all(_has(found + prefix, name) for name in names)), "")
        if not more:
            break
        found = more
    compiled = _compiled_name(name.removeprefix(found) for name in names)
    if compiled:
        raise UnsupportedCheckpoint(
            f"{folder}: tensor {found}{printable(compiled)}: torch.compile has put {_COMPILED} into its name",
            "Save the model before it is compiled.",
        )
    return found


def unloadable_names(names: Collection[str]) -> str:
    """Why no loader finds tensors of these names; empty if no prefix prevents it.

    Args:
        names: names of tensors.
    """
    prefix = next((prefix for prefix in PREFIXES if all(_has(prefix, name) for name in names)), "")
    if prefix and names:
        return f"the names of all tensors begin with {prefix}, so that no loader finds them"
    compiled = _compiled_name(names)
    return f"torch.compile has put {_COMPILED} into the name {printable(compiled)}" if compiled else ""


def _compiled_name(names: Iterable[str]) -> str:
    return next((name for name in names if _COMPILED in name), "")


def _has(prefix: str, name: str) -> bool:
    """Whether a name is longer than the prefix that it begins with."""
    return name.startswith(prefix) and name != prefix
