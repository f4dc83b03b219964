"""Harm by measuring: what one weight alone, stored in another way, changes in the denoiser's output.

For each candidate the calls are repeated once, so this takes as many passes as there are modules and candidates. It is
what the other harms are compared with, and small models can afford it.

Small harms can be measured in float32 only. In bfloat16 any change of a weight changes how all later numbers are
rounded: on the trained model of `synth --preset signs` that alone is an error of about 1 %, where int8 in one module
makes 0.1 %. Such harms then have no meaning as ranks, and their sum is far above the error of the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from converter.console import SILENT, Reporter
from converter.measurement.comparison.trajectory import Difference
from converter.measurement.generation.loading import blaming
from converter.measurement.sensitivity.calls import Call, replay
from converter.measurement.sensitivity.loaded import LoadedOriginal
from converter.measurement.sensitivity.storage import Storage
from converter.measurement.sensitivity.swapping import Swapping
from converter.models.int8_kernels import prepare_int8_kernel


@dataclass(frozen=True)
class Candidate:
    """One way of storing a tensor."""

    storage: Storage
    quantization: Mapping[str, Any]
    """The ``quantization_config`` of the plan that the storage is from."""

    @property
    def key(self) -> tuple[str, str]:
        """The tensor's name in the source, and the key of the storage."""
        return self.storage.source, self.storage.key


def replay_loaded(loaded: LoadedOriginal, calls: Sequence[Call]) -> list[Difference]:
    """Repeat the calls of a loaded original with the weights that its denoiser has now.

    Raises:
        ImageError: a number is not finite.
        UnsupportedCheckpoint: the denoiser fails.
        MemoryLimitError: memory is used up.
    """
    with blaming(loaded.repo.folder):
        prepare_int8_kernel(loaded.denoiser, loaded.device)
        return replay(loaded.denoiser, calls, loaded.device)


def measure_variant(
    loaded: LoadedOriginal,
    swapping: Swapping,
    calls: Sequence[Call],
    storages: Mapping[str, Storage],
    quantization: Mapping[str, Any],
) -> list[Difference]:
    """Store weights in another way, and repeat the calls; the variant stays in place.

    Args:
        loaded: the original.
        swapping: of its denoiser.
        calls: recorded ones.
        storages: how tensors are stored, by their names in the source; all others are as in the original.
        quantization: the ``quantization_config`` of the plan that the storages are from.

    Returns:
        One difference for each call.

    Raises:
        UnsupportedCheckpoint: nothing changes, although weights do.

    Raises also what ``Swapping.use`` and ``replay_loaded`` raise.
    """
    swapping.use(storages, quantization)
    found = replay_loaded(loaded, calls)
    if not any(difference.error for difference in found):
        swapping.refuse_no_effect(calls[0])
    return found


def measure_harms(
    loaded: LoadedOriginal,
    swapping: Swapping,
    calls: Sequence[Call],
    candidates: Iterable[Candidate],
    *,
    note: Callable[[Mapping[tuple[str, str], float]], object] = lambda _: None,
    reporter: Reporter = SILENT,
) -> dict[tuple[str, str], float]:
    """Measure the harm of each candidate alone; afterwards, the original is in place.

    Args:
        loaded: the original.
        swapping: of its denoiser.
        calls: recorded ones.
        candidates: what is measured.
        note: is called with each harm as soon as it is known.
        reporter: shows progress.

    Returns:
        The mean over the calls of the squared relative error of the denoiser's output, by ``Candidate.key``.

    Raises: as ``measure_variant``.
    """
    wanted, harms = list(candidates), dict[tuple[str, str], float]()
    with swapping, reporter.progress("measuring", len(wanted), "candidates") as shown:
        for candidate in wanted:
            storage = candidate.storage
            found = measure_variant(loaded, swapping, calls, {storage.source: storage}, candidate.quantization)
            harms[candidate.key] = mean_square(found)
            note({candidate.key: harms[candidate.key]})
            shown.advance(1)
            shown.refresh()
    return harms


def mean_square(differences: Sequence[Difference]) -> float:
    """The mean of the squared relative errors.

    Raises:
        ImageError: the original's output is zero.
    """
    return fmean(difference.relative**2 for difference in differences)


def predicted_error(harms: Iterable[float]) -> float:
    """The relative error of the denoiser's output that a recipe has, by the harms of its modules.

    It is the root of the mean square over calls. Errors of different modules are taken to be independent.

    Args:
        harms: by gradients, or measured.
    """
    return math.sqrt(math.fsum(harms))
