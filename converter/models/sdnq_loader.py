"""Which models SDNQ's own loader can load: those whose files name the tensors as the model does.

transformers renames the tensors of some classes when it loads and saves them. ``load_sdnq_model`` does not, except for
the patterns that a class lists itself (sdnq 0.2.8, ``sdnq.file_loader``).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from converter.libraries import load_library, package_versions


def refused_names(model: Any, names: Collection[str]) -> str:
    """Why ``load_sdnq_model`` cannot load a file of transformers; empty if it can.

    Args:
        model: as it is after loading, with SDNQ's modules; it may be on the meta device.
        names: of the tensors in its files.
    """
    mapping = getattr(model, "_checkpoint_conversion_mapping", None)
    map_keys = load_library("sdnq.file_loader").map_keys
    found = {map_keys(name, mapping) for name in names}
    found |= {alias for alias, target in (getattr(model, "_tied_weights_keys", None) or {}).items() if target in found}
    wanted = model.state_dict().keys()
    if found >= wanted:
        return ""
    other = min(found - wanted, default="none")
    loader, class_name = f"load_sdnq_model of sdnq {package_versions()['sdnq']}", type(model).__name__
    reason = f"its files have other names ({other}) than the model ({min(wanted - found)})"
    return f"{loader} cannot load {class_name}, because {reason}; from_pretrained of transformers can"


def has_all_names(model: Any, names: Collection[str]) -> bool:
    """Whether files contain all tensors that transformers would save, under the names that it gives them.

    Args:
        model: as transformers has loaded it.
        names: of the tensors in its files.
    """
    reverted = load_library("transformers.core_model_loading").revert_weight_conversion(model, model.state_dict())
    return bool(reverted.keys() - set(names) <= model.all_tied_weights_keys.keys())
