"""Stand-ins for the tensors of an adapter, which show what a converter of diffusers does with each.

A converter that only renames returns the objects that it was given: their numbers can stay in the file. One that
multiplies, splits or joins tensors returns new objects, and those know which tensors they were made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch


class Traced(torch.Tensor):  # type: ignore[misc]  # mypy does not follow torch
    """A tensor that knows the names of the tensors that it was made from; ``[any shape]``, any dtype."""

    origins: frozenset[str] = frozenset()

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        result = super().__torch_function__(function, types, arguments, options or {})
        origins = frozenset[str]().union(*_origins((arguments, tuple((options or {}).values()))))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Traced) and not tensor.origins:
                tensor.origins = origins
        return result


def traced(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, which remember their names."""
    result: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stand_in = tensor.as_subclass(Traced)
        stand_in.origins = frozenset({name})
        result[name] = stand_in
    return result


def origins_of(tensors: Iterable[Any]) -> frozenset[str]:
    """Names of the tensors that some tensors were made from."""
    return frozenset[str]().union(*_origins(tuple(tensors)))


def _origins(value: Any) -> Iterable[frozenset[str]]:
    if isinstance(value, Traced):
        yield value.origins
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _origins(item)
