"""The new weight of an adapted module, in runs of rows: float32 numbers with the bits that merging by PEFT gives.

A matrix library may add the terms of a product in another order for another number of rows. So the product is always
computed in the same blocks of rows, whichever rows are asked for, and before that once per shape it is tested that
these blocks equal the whole product, bit for bit. Where they do not, the whole product is computed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch.nn import functional

from converter.checkpoint.reader import TensorReader
from converter.checkpoint.source import SourceTensor
from converter.conversion.adapters.additions import BLOCK_ROWS, Addition
from converter.conversion.adapters.file import read_tensor
from converter.conversion.adapters.modules import ModuleAdapter, ModuleShape

#: The number of threads is one for the process.
_THREADS = threading.RLock()


def blocks(rows: int) -> Iterator[tuple[int, int]]:
    """The blocks, as (first, after last), in which a product of so many rows is computed."""
    count = max(1, rows // BLOCK_ROWS)
    for number in range(count):
        yield number * BLOCK_ROWS, rows if number == count - 1 else (number + 1) * BLOCK_ROWS


def product(shape: ModuleShape, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The product of two factors, by the function of torch that PEFT calls for such a module.

    Args:
        shape: of the module.
        down: A, float32, ``[rank, in]`` or ``[rank, in, height, width]``.
        up: B or some of its rows, float32, ``[rows, rank]`` or ``[rows, rank, 1, 1]``.

    Returns:
        float32, ``[rows, *shape.weight[1:]]``.
    """
    if shape.convolves:
        return functional.conv2d(down.transpose(0, 1), up).transpose(0, 1)
    return (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *shape.weight[1:])


def blocks_are_exact(shape: ModuleShape, rank: int, threads: int) -> bool:
    """Whether blocks of rows, computed by one thread, equal the whole product computed by several, bit for bit.

    It computes both for random factors, once for each shape and rank in a process; see ``check_bytes``. Call it before
    other threads compute with torch, as it changes the number of torch's threads meanwhile.

    Args:
        shape: of the module.
        rank: of the adapter.
        threads: with which the reference computes.
    """
    # A bias changes nothing, and must not cause a second test.
    return _blocks_are_exact(shape.weight, rank, threads)


@cache
def _blocks_are_exact(weight: tuple[int, ...], rank: int, threads: int) -> bool:
    shape = ModuleShape(weight, has_bias=False)
    generator = torch.Generator().manual_seed(0)
    pixel = (1,) * (len(weight) - 2)
    down = torch.randn((rank, *weight[1:]), generator=generator)
    up = torch.randn((weight[0], rank, *pixel), generator=generator)
    with torch_threads(threads):
        whole = product(shape, down, up)
    with torch_threads(1):
        return all(
            torch.equal(product(shape, down, up[first:last]), whole[first:last]) for first, last in blocks(shape.rows)
        )


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads while the block runs."""
    with _THREADS:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class NewWeight:
    """The weight of one module with its adapters added, while it is converted.

    Args:
        shape: of the module.
        adapters: in the order in which they are added; at least one.
        in_blocks: whether to compute products in blocks of rows, when they are asked for. Then torch must compute with
            one thread, and ``blocks_are_exact`` must have said that this is right. Otherwise a whole product is
            computed, and held; torch must compute with the threads of the reference.

    Raises: what ``TensorReader.read`` raises.
    """

    def __init__(self, shape: ModuleShape, adapters: Sequence[ModuleAdapter], *, in_blocks: bool) -> None:
        self.shape = shape
        self._adapters = tuple(adapters)
        self._in_blocks = in_blocks
        self._factors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._wholes: dict[int, torch.Tensor] = {}
        with TensorReader() as reader:
            for adapter in adapters:
                self._factors.append((adapter.down.load(reader), adapter.up.load(reader)))

    def add(self, base: torch.Tensor, first: int) -> None:
        """Add the adapters to some rows of the weight, in place.

        Args:
            base: float32, ``[rows, *shape.weight[1:]]``; rows of the module's weight.
            first: the number of the first of them.
        """
        last = first + base.shape[0]
        for number, adapter in enumerate(self._adapters):
            for start, stop, numbers in self._products(number, first, last):
                kept = slice(max(start, first), min(stop, last))
                rows = base[kept.start - first : kept.stop - first]
                # Two roundings, as in PEFT: of the product times the scaling, and of the sum.
                rows.add_(numbers[kept.start - start : kept.stop - start] * adapter.scaling)

    def _products(self, number: int, first: int, last: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Products that cover some rows, as (first row, after last row, numbers)."""
        down, up = self._factors[number]
        if self._in_blocks:
            for start, stop in blocks(self.shape.rows):
                if start < last and first < stop:
                    yield start, stop, product(self.shape, down, up[start:stop])
            return
        if number not in self._wholes:
            self._wholes[number] = product(self.shape, down, up)
        yield 0, self.shape.rows, self._wholes[number]


class NewBias:
    """The bias of a module with those of its adapters added.

    Args:
        adapters: in the order in which they are added; those without a bias change nothing.
    """

    def __init__(self, adapters: Sequence[ModuleAdapter]) -> None:
        self._adapters = tuple(adapters)

    def add(self, base: torch.Tensor, first: int) -> None:
        """Add to some numbers of the bias, in place.

        Args:
            base: float32, ``[rows]``.
            first: the number of the first of them.

        Raises: what ``TensorReader.read`` raises.
        """
        with TensorReader() as reader:
            for adapter in self._adapters:
                if adapter.bias is not None:
                    base += adapter.bias.load(reader)[first : first + base.shape[0]] * adapter.scaling


def start(addition: Addition) -> NewWeight | NewBias:
    """Read what is added to a tensor; the result adds it to rows. Raises what ``TensorReader.read`` raises."""
    if addition.is_bias:
        return NewBias(addition.adapters)
    return NewWeight(addition.shape, addition.adapters, in_blocks=addition.in_blocks)


def read_added(addition: Addition, tensor: SourceTensor, reader: TensorReader) -> torch.Tensor:
    """Read a whole tensor of a source, with what is added to it.

    Args:
        addition: what is added.
        tensor: float16, bfloat16, float32 or float64.
        reader: reads it.

    Returns:
        float32, in the shape of the tensor.

    Raises: what ``TensorReader.read`` raises.
    """
    whole = read_tensor(tensor, reader).float()
    start(addition).add(whole, 0)
    return whole
