"""Tensors of an adapter that are read when a converter of diffusers computes with them.

A converter that only renames returns the objects that it was given: their numbers stay in the file. One that
multiplies, splits or joins tensors returns new objects, and those know which tensors they were made from. So memory
is taken by what is made alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

#: Questions that are answered without the numbers.
_ANSWERED = (
    *(torch.Tensor.shape.__get__, torch.Tensor.dtype.__get__, torch.Tensor.ndim.__get__),
    *(torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel),
)


class Traced(torch.Tensor):  # type: ignore[misc]  # mypy does not follow torch
    """A tensor that knows the names of the tensors that it was made from; ``[any shape]``, any dtype.

    It can be changed in place, but a view of a tensor in the file does not change with that tensor, as it is of numbers
    that were read for it alone.
    """

    origins: frozenset[str] = frozenset()
    name: str = ""
    """In the file; empty for what was made, or changed in place."""
    read: Callable[[], torch.Tensor] | None = None
    """Returns the numbers, if they are not in this tensor itself, which then has none."""

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        options = options or {}
        if function == torch.Tensor.device.__get__:
            # Converters make other tensors there.
            return torch.device("cpu")
        if function in _ANSWERED:
            return super().__torch_function__(function, types, arguments, options)
        read: list[tuple[Traced, torch.Tensor]] = []
        result = super().__torch_function__(
            function, types, _with_numbers(arguments, read), _with_numbers(options, read)
        )
        origins = origins_of((*arguments, *options.values()))
        for tensor, numbers in read:
            if numbers._version:
                tensor._keep(numbers, origins)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Traced):
                tensor.origins |= origins
        return result

    def _keep(self, numbers: torch.Tensor, origins: frozenset[str]) -> None:
        """Have other numbers than the file, because they were changed in place."""
        self.name, self.read = "", lambda: numbers
        self.origins |= origins


def traced(name: str, shape: tuple[int, ...], dtype: torch.dtype, read: Callable[[], torch.Tensor]) -> Traced:
    """A tensor of the file.

    Args:
        name: in the file.
        shape: of the tensor.
        dtype: of its numbers.
        read: reads them, each time into memory of its own.
    """
    tensor: Traced = without_numbers(shape, dtype).as_subclass(Traced)
    tensor.name, tensor.read, tensor.origins = name, read, frozenset({name})
    return tensor


def without_numbers(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor that takes no memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def name_of(tensor: torch.Tensor) -> str:
    """The name in the file of a tensor that is as it is there; else empty."""
    return tensor.name if isinstance(tensor, Traced) else ""


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor, as torch's own class. Raises what reading raises."""
    if not isinstance(tensor, Traced):
        return tensor
    if tensor.read is not None:
        return tensor.read()
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor)


def origins_of(tensors: Iterable[Any]) -> frozenset[str]:
    """Names of the tensors that some values were made from: tensors, and containers of tensors."""
    return frozenset[str]().union(*map(_origins, tensors))


def _origins(value: Any) -> frozenset[str]:
    if isinstance(value, Traced):
        return value.origins
    return origins_of(value) if isinstance(value, (tuple, list)) else frozenset()


def _with_numbers(value: Any, read: list[tuple[Traced, torch.Tensor]]) -> Any:
    """The same value with the numbers of what is in a file; which tensors those were is added to a list."""
    if isinstance(value, Traced) and value.read is not None:
        numbers = value.read()
        read.append((value, numbers))
        return numbers
    if isinstance(value, dict):
        return {key: _with_numbers(item, read) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_with_numbers(item, read) for item in value)
    return value
