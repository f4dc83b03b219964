"""What adapters add to one tensor of a source, and the memory that it takes. This module does not need torch."""

from __future__ import annotations

from dataclasses import dataclass

from converter.conversion.adapters.modules import FLOAT_BYTES, ModuleAdapter, ModuleShape

#: The dtype of a tensor to which something was added.
ADDED_DTYPE = "F32"
#: Rows of a block, enough for the library to compute at full speed. A block of one row would be a product of a matrix
#: and a vector, which adds in another order; the last block takes what is left over, so none is that short.
BLOCK_ROWS = 64
#: Memory that one number takes while adapters are added to it: the number in float32, and what is added.
ADDED_BYTES = 2 * FLOAT_BYTES
#: Memory for factors, in multiples of their size: they themselves, and what oneDNN takes to arrange them for a
#: convolution, or MKL for a product; measured.
_FACTOR_COPIES = 4


@dataclass(frozen=True)
class Addition:
    """What adapters add to a weight or to a bias."""

    shape: ModuleShape
    """Of the module that it belongs to."""
    adapters: tuple[ModuleAdapter, ...]
    """In the order in which they are added."""
    is_bias: bool = False
    in_blocks: bool = False
    """Whether products are computed in blocks of rows; see ``NewWeight``."""

    @property
    def rows(self) -> int:
        """Rows of the tensor, each of which is added to as a whole."""
        return self.shape.rows

    @property
    def row_numbers(self) -> int:
        """Numbers in one row."""
        return 1 if self.is_bias else self.shape.row_numbers

    @property
    def fixed_bytes(self) -> int:
        """Memory that is taken as long as the tensor is converted, besides ``ADDED_BYTES`` for each number."""
        if self.is_bias:
            return 2 * self.rows * FLOAT_BYTES
        factors = sum(_factor_bytes(self.shape, adapter.rank) for adapter in self.adapters)
        if self.in_blocks:
            # A block, at most twice as long for the last, and its scaled copy.
            return factors + 2 * _rows_bytes(self.shape, 2 * BLOCK_ROWS)
        return factors + len(self.adapters) * _rows_bytes(self.shape, self.rows)

    @property
    def check_bytes(self) -> int:
        """Memory that it takes to find out whether blocks are exact; see ``blocks_are_exact``."""
        return 0 if self.is_bias else max(check_bytes(self.shape, adapter.rank) for adapter in self.adapters)


def check_bytes(shape: ModuleShape, rank: int) -> int:
    """Bytes that ``blocks_are_exact`` takes for a shape that it has not seen."""
    return _rows_bytes(shape, shape.rows) + _rows_bytes(shape, 2 * BLOCK_ROWS) + _factor_bytes(shape, rank)


def _factor_bytes(shape: ModuleShape, rank: int) -> int:
    return rank * (shape.rows + shape.row_numbers) * FLOAT_BYTES * _FACTOR_COPIES


def _rows_bytes(shape: ModuleShape, rows: int) -> int:
    return min(rows, shape.rows) * shape.row_numbers * FLOAT_BYTES
