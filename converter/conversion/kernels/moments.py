"""Second moments of a layer's inputs, read, checked and factorised for calibrated rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from converter.checkpoint.reader import TensorReader
from converter.checkpoint.source import SourceTensor
from converter.conversion.kernels.sdnq import as_tensor
from converter.errors import CalibrationError

#: What is added to the diagonal so that it can be factorised, as parts of its mean: the first that works.
DAMPING = (0.01, 0.1, 1.0)
#: What is added to all of them, so that a few inputs with no variance of their own do not decide.
NOT_DAMPED = DAMPING[0]
#: The largest difference between numbers that should be equal by symmetry, as a part of the largest number.
ASYMMETRY = 1e-3


@dataclass(frozen=True)
class MomentsBlock:
    """A block on the diagonal of the second moments H: those of some channels, one after the other."""

    start: int
    """The first channel."""
    hessian: torch.Tensor
    """H, float32, ``[size, size]``."""
    root: torch.Tensor
    """R of H = R·Rᵀ, with what was added to the diagonal; float32, upper triangular."""
    damping: float
    """What was added to the diagonal, as a part of its mean."""

    @property
    def stop(self) -> int:
        """The channel after the last one."""
        return self.start + len(self.hessian)


@dataclass(frozen=True)
class Moments:
    """Second moments that are ready for rounding."""

    blocks: Sequence[MomentsBlock]
    """All blocks, in their order; what is outside of them counts as zero."""
    weights: NDArray[np.float32]
    """What an error in each channel weighs: the diagonal, with what was added, as multiples of its mean."""

    @property
    def damping(self) -> float:
        """The most that was added to a diagonal, as a part of its mean."""
        return max(block.damping for block in self.blocks)


def read_moments(tensor: SourceTensor, reader: TensorReader) -> Moments:
    """Read second moments from the file of a calibration, and factorise them.

    Args:
        tensor: which.
        reader: reads them.

    Raises:
        CalibrationError: they contain NaN or infinity, or are not symmetric or not positive semidefinite.
    """
    data = as_tensor(reader.read_all(tensor), tensor.entry.dtype, tensor.entry.shape)
    blocks = data if data.ndim == 3 else data.unsqueeze(0)
    problem = next(filter(None, map(_problem, blocks)), "")
    if not problem:
        moments = factorise(blocks)
        if moments is not None:
            return moments
        problem = "is not positive semidefinite, as second moments are"
    raise CalibrationError(tensor.file, problem, tensor=tensor.entry.name)


def _problem(hessian: torch.Tensor) -> str:
    least, largest = hessian.aminmax()
    if not (least.isfinite() and largest.isfinite()):
        return "contains NaN or infinity"
    if (hessian - hessian.T).abs_().max() > ASYMMETRY * max(-float(least), float(largest)):
        return "is not symmetric, as second moments are"
    return ""


def factorise(blocks: torch.Tensor) -> Moments | None:
    """Factorise second moments; None if they are not positive semidefinite, not even nearly.

    Args:
        blocks: on the diagonal: float32, ``[blocks, size, size]``, symmetric and finite.
    """
    found: list[MomentsBlock] = []
    weights = []
    for number, hessian in enumerate(blocks):
        block = _factorise_block(number * len(hessian), hessian)
        if block is None:
            return None
        found.append(block)
        diagonal = hessian.diagonal().double()
        weights.append(diagonal + _added(diagonal, block.damping))
    joined = torch.cat(weights)
    return Moments(found, (joined / joined.mean()).float().numpy())


def _added(diagonal: torch.Tensor, damping: float) -> float:
    """What to add to a diagonal; if inputs are always zero, any positive number will do."""
    return damping * float(diagonal.mean()) or 1.0


def _factorise_block(start: int, hessian: torch.Tensor) -> MomentsBlock | None:
    diagonal = hessian.diagonal().double()
    mean = float(diagonal.mean())
    if mean < 0 or (mean == 0 and bool(hessian.any())):
        return None
    for damping in DAMPING:
        # Upper instead of lower triangular: with rows and columns in reverse order.
        reverse = hessian.flip(0, 1).double()
        reverse.diagonal().add_(_added(diagonal, damping))
        lower, failed = torch.linalg.cholesky_ex(reverse)
        del reverse
        if not int(failed):
            return MomentsBlock(start, hessian, lower.float().flip(0, 1).contiguous(), damping)
    return None
