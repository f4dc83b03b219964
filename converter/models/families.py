"""Families: the tensors with one role in a model, which recipes select and tables add up."""

from __future__ import annotations

import re

from converter.models.lens.layout import CLASS_NAME, lens_family

#: Roles in models other than Lens, by the words that their authors use; the first match counts.
_WORDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("modulation", re.compile(r"(^|[._])(ada_?ln|mod(\d|\.|$))|modulation", re.IGNORECASE)),
    ("norm", re.compile(r"norm|(^|\.)ln(_\w+)?(\.|$)", re.IGNORECASE)),
    ("attn", re.compile(r"attn|attention", re.IGNORECASE)),
    ("mlp", re.compile(r"(^|[._])(mlp|ff|ffn|feed_?forward|experts?)(_\w+)?(\.|$)|DenseReluDense", re.IGNORECASE)),
    ("conv", re.compile(r"conv|resnets|sampler", re.IGNORECASE)),
    ("embed", re.compile(r"embed|wte|wpe|shared|lm_head|proj_in|proj_out", re.IGNORECASE)),
)


def family(name: str, class_name: str) -> str:
    """The family of a tensor or module; ``other`` when its name says nothing.

    Args:
        name: full dotted name.
        class_name: class of the model it belongs to.
    """
    if class_name == CLASS_NAME:
        return lens_family(name) or "other"
    return next((word for word, pattern in _WORDS if pattern.search(name)), "other")
