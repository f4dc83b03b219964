"""Figures in the front matter of a card, under ``model-index``.

As specified in hub-docs, modelcard.md, and parsed by huggingface_hub's ``model_index_to_eval_results``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: What a value must be: of a type; a list of one kind of entries; or a mapping, whose keys may end with ``?`` for
#: optional.
_Form = type | list["_Form"] | dict[str, "_Form"]
_INDEX: _Form = [
    {
        "name": str,
        "results": [
            {
                "task": {"type": str, "name?": str},
                "dataset": {"type": str, "name": str, "config?": str, "split?": str, "revision?": str},
                "metrics": [{"type": str, "value": object, "name?": str, "config?": str, "verified?": bool}],
                "source?": {"url": str, "name?": str},
            }
        ],
    }
]
_TYPES = {str: "text", bool: "true or false"}


def index_faults(value: Any, form: _Form = _INDEX, where: str = "model-index") -> Iterator[str]:
    """Yield what is wrong with the value of ``model-index``.

    Args:
        value: the value, or a part of it.
        form: what it must be.
        where: its place in the front matter.
    """
    if isinstance(form, list):
        if not isinstance(value, list):
            yield f"{where} is not a list"
            return
        for number, entry in enumerate(value):
            yield from index_faults(entry, form[0], f"{where}[{number}]")
    elif isinstance(form, dict):
        if not isinstance(value, dict):
            yield f"{where} is not a mapping"
            return
        for key, part in form.items():
            name = key.removesuffix("?")
            if value.get(name) is not None:
                yield from index_faults(value[name], part, f"{where}.{name}")
            elif name == key or name in value:
                yield f"{where}.{name} is {'empty' if name in value else 'missing'}"
    elif not isinstance(value, form):
        yield f"{where} is not {_TYPES[form]}"
