"""What an adapter adds to each module, and which modules can be adapted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from converter.checkpoint.reader import TensorReader
from converter.checkpoint.source import SourceTensor
from converter.conversion.adapters.file import read_tensor
from converter.libraries import load_library

if TYPE_CHECKING:
    import torch

#: Bytes of a number in float32.
FLOAT_BYTES = 4


@dataclass(frozen=True)
class ModuleShape:
    """A module of the model to which PEFT can add a product: a Linear, or a Conv2d of one group."""

    weight: tuple[int, ...]
    """``[out, in]``, or ``[out, in, height, width]``."""
    has_bias: bool

    @property
    def rows(self) -> int:
        """Rows of the weight: ``out``."""
        return self.weight[0]

    @property
    def row_numbers(self) -> int:
        """Numbers in one row."""
        return prod(self.weight[1:])

    @property
    def convolves(self) -> bool:
        """Whether PEFT computes the product as a convolution, which it does for kernels larger than one pixel."""
        return len(self.weight) > 2 and self.weight[2:] != (1, 1)


@dataclass(frozen=True)
class Factor:
    """One tensor of an adapter: in the file, or held because a converter made it."""

    shape: tuple[int, ...]
    stored: SourceTensor | None
    """Where it is in the file; None if it is held."""
    held: torch.Tensor | None = None
    """In the dtype of the file."""

    def load(self, reader: TensorReader) -> torch.Tensor:
        """Its numbers in float32, in memory of its own.

        Raises: what ``TensorReader.read`` raises.
        """
        if self.held is not None:
            tensor = self.held
        elif self.stored is not None:
            tensor = read_tensor(self.stored, reader)
        else:
            raise ValueError("a factor is in a file or held")
        torch = load_library("torch")
        # torch aligns what it allocates; results of a product of high rank depend on that.
        return torch.empty(self.shape, dtype=torch.float32).copy_(tensor)


@dataclass(frozen=True)
class ModuleAdapter:
    """What one adapter adds to one module: ``(B @ A) * scaling``."""

    down: Factor
    """A: ``[rank, in]`` or ``[rank, in, height, width]``."""
    up: Factor
    """B: ``[out, rank]`` or ``[out, rank, 1, 1]``."""
    scaling: float
    """Alpha over rank, times the scale that the user gave; rounded to float32 when it is used."""
    bias: Factor | None = None
    """``[out]``; times ``scaling``, it is added to the module's bias."""

    @property
    def rank(self) -> int:
        """Columns of B."""
        return self.up.shape[1]

    @property
    def factors(self) -> tuple[Factor, ...]:
        """A and B, and the bias if there is one."""
        return (self.down, self.up) if self.bias is None else (self.down, self.up, self.bias)


def adaptable_modules(model: torch.nn.Module) -> Mapping[str, ModuleShape | str]:
    """The modules of a model by path: their shapes, or for those that cannot be adapted, why.

    Args:
        model: may be on the meta device.
    """
    from torch import nn

    found: dict[str, ModuleShape | str] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            found[path] = ModuleShape(tuple(module.weight.shape), module.bias is not None)
        elif isinstance(module, nn.Conv2d):
            found[path] = f"a Conv2d of {module.groups} groups, to which PEFT cannot add"
        else:
            found[path] = f"a {type(module).__name__}; only Linear and Conv2d are supported"
    return found
