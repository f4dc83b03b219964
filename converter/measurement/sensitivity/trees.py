"""Nested arguments and results of a model: lists, tuples and dictionaries with tensors in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

#: Values that are copied by taking them.
PLAIN = (type(None), bool, int, float, str)


def change_tensors(tree: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Copy a tree, with something else in place of each tensor.

    Lists, tuples and dictionaries become new plain ones; the outputs of diffusers, which are dictionaries with fields,
    become dictionaries.

    Args:
        tree: of lists, tuples, dictionaries, tensors and ``PLAIN`` values.
        change: called with each tensor.

    Raises:
        TypeError: it contains something else; the message names the class.
    """
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: change_tensors(value, change) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(change_tensors(value, change) for value in tree)
    if isinstance(tree, list):
        return [change_tensors(value, change) for value in tree]
    if isinstance(tree, PLAIN):
        return tree
    raise TypeError(f"{type(tree).__module__}.{type(tree).__qualname__}")


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """The tensors of a tree, from left to right."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors_in(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors_in(value)


def numbers_in(tree: Any) -> Iterator[torch.Tensor]:
    """The tensors of a tree that hold floats: of what a denoiser returns, its prediction."""
    return (tensor for tensor in tensors_in(tree) if tensor.is_floating_point())
