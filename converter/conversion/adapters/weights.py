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
from converter.conversion.adapters.modules import FLOAT_BYTES, ModuleAdapter, ModuleShape

#: Rows of a block, enough for the library to compute at full speed. A block of one row would be a product of a matrix
#: and a vector, which adds in another order; the last block takes what is left over, so none is that short.
BLOCK_ROWS = 64
#: Memory for factors, in multiples of their size: they themselves, and what oneDNN takes to arrange them for a
#: convolution, or MKL for a product; measured.
_FACTOR_COPIES = 4
#: MKL has one number of threads for the process. Only products that ask for a number of their own wait for this.
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


def check_bytes(shape: ModuleShape, rank: int) -> int:
    """Bytes that ``blocks_are_exact`` takes for a shape that it has not seen."""
    return _rows_bytes(shape, shape.rows) + _rows_bytes(shape, 2 * BLOCK_ROWS) + _factor_bytes(shape, rank)


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

    Use it where torch computes with one thread, for which ``blocks_are_exact`` tests.

    Args:
        shape: of the module.
        adapters: in the order in which they are added; at least one.
        threads: with which the reference computes.

    Raises: what ``TensorReader.read`` raises.
    """

    def __init__(self, shape: ModuleShape, adapters: Sequence[ModuleAdapter], threads: int) -> None:
        self.shape = shape
        self._adapters = tuple(adapters)
        self._threads = threads
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
                # Two roundings, as in PEFT: of the product times the scaling, and of the sum.
                delta = numbers[kept.start - start : kept.stop - start] * adapter.scaling
                base[kept.start - first : kept.stop - first] += delta

    def _products(self, number: int, first: int, last: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Products that cover some rows, as (first row, after last row, numbers)."""
        down, up = self._factors[number]
        if number not in self._wholes and blocks_are_exact(self.shape, self._adapters[number].rank, self._threads):
            for start, stop in blocks(self.shape.rows):
                if start < last and first < stop:
                    yield start, stop, product(self.shape, down, up[start:stop])
            return
        if number not in self._wholes:
            with torch_threads(self._threads):
                self._wholes[number] = product(self.shape, down, up)
        yield 0, self.shape.rows, self._wholes[number]


def weight_bytes(shape: ModuleShape, adapters: Sequence[ModuleAdapter], rows: int, threads: int) -> int:
    """Bytes that a ``NewWeight`` takes when so many rows are added to at a time, without the base.

    It tests shapes that were not tested yet, which takes ``check_bytes``.
    """
    total, largest = 0, 0
    for adapter in adapters:
        total += _factor_bytes(shape, adapter.rank)
        if blocks_are_exact(shape, adapter.rank, threads):
            # A block, at most twice as long for the last, and its scaled copy.
            largest = max(largest, 2 * _rows_bytes(shape, 2 * BLOCK_ROWS))
        else:
            total += _rows_bytes(shape, shape.rows)
            largest = max(largest, _rows_bytes(shape, rows))
    return total + largest


def new_bias(base: torch.Tensor, adapters: Sequence[ModuleAdapter]) -> torch.Tensor:
    """The bias of a module with those of its adapters added.

    Args:
        base: float32, ``[out]``.
        adapters: in the order in which they are added; those without a bias change nothing.

    Raises: what ``TensorReader.read`` raises.
    """
    result = base.clone()
    with TensorReader() as reader:
        for adapter in adapters:
            if adapter.bias is not None:
                result += adapter.bias.load(reader) * adapter.scaling
    return result


def _factor_bytes(shape: ModuleShape, rank: int) -> int:
    return rank * (shape.rows + shape.row_numbers) * FLOAT_BYTES * _FACTOR_COPIES


def _rows_bytes(shape: ModuleShape, rows: int) -> int:
    return min(rows, shape.rows) * shape.row_numbers * FLOAT_BYTES
