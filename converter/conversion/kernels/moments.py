"""Second moments of a layer's inputs, read, checked and factorised for calibrated rounding."""

from __future__ import annotations

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
class Moments:
    """Second moments that are ready for rounding."""

    hessian: torch.Tensor
    """H, float32, ``[channels, channels]``."""
    root: torch.Tensor
    """R of H = R·Rᵀ, with what was added to the diagonal; float32, upper triangular."""
    weights: NDArray[np.float32]
    """What an error in each column weighs: the diagonal, with what was added, as multiples of its mean."""
    damping: float
    """What was added to the diagonal, as a part of its mean."""


def read_moments(tensor: SourceTensor, reader: TensorReader) -> Moments:
    """Read second moments from the file of a calibration, and factorise them.

    Args:
        tensor: which.
        reader: reads them.

    Raises:
        CalibrationError: they contain NaN or infinity, or are not symmetric or not positive semidefinite.
    """
    data = reader.read_all(tensor)
    hessian = as_tensor(data, tensor.entry.dtype, tensor.entry.shape)
    problem = _problem(hessian)
    if not problem:
        moments = factorise(hessian)
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


def factorise(hessian: torch.Tensor) -> Moments | None:
    """Factorise second moments; None if they are not positive semidefinite, not even nearly.

    Args:
        hessian: float32, ``[channels, channels]``, symmetric and finite.
    """
    diagonal = hessian.diagonal().double()
    mean = float(diagonal.mean())
    if mean < 0 or (mean == 0 and bool(hessian.any())):
        return None
    for damping in DAMPING:
        # Inputs that are always zero have no moments; then any positive number will do.
        added = damping * mean if mean > 0 else 1.0
        # Upper instead of lower triangular: with rows and columns in reverse order.
        reverse = hessian.flip(0, 1).double()
        reverse.diagonal().add_(added)
        lower, failed = torch.linalg.cholesky_ex(reverse)
        del reverse
        if not int(failed):
            weights = (diagonal + added) / (mean + added)
            return Moments(hessian, lower.float().flip(0, 1).contiguous(), weights.float().numpy(), damping)
    return None
