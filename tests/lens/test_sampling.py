"""Sizes, noise levels, guidance and latents, compared with the plain reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from converter.models.lens import sampling
from converter.models.lens.resolutions import ASPECT_RATIOS, RESOLUTIONS, resolution
from tests.lens import reference
from tests.lens.pipelines import GRID, noise

#: mu by tokens and steps, and the first and last sigmas; copied from the facts.
SCHEDULES: list[tuple[int, int, float, list[float], list[float]]] = [
    (1024, 4, 2.03069, [1, 0.95809, 0.88398, 0.7175, 0], []),
    (4096, 4, 2.29118, [1, 0.96738, 0.90814, 0.7672, 0], []),
    (4096, 20, 2.198022, [1, 0.99419, 0.98781, 0.98078], [0.5002, 0.3216, 0]),
    (4096, 50, 2.023351, [1], [0]),
    (4232, 20, 2.210492, [1], [0]),
    (8100, 4, 1.827754, [1, 0.94913, 0.86149, 0.67462, 0], []),
    (8100, 20, 1.827754, [1, 0.99161, 0.98245, 0.97241], [0.40867, 0.24663, 0]),
    (8228, 50, 1.84942, [1], [0]),
]


def test_sizes_are_those_of_the_reference() -> None:
    found = {aspect: {base: resolution(base, aspect) for base in RESOLUTIONS} for aspect in ASPECT_RATIOS}
    assert (found, [*found]) == (reference.BUCKETS, [*reference.BUCKETS])


@pytest.fixture(scope="module")
def scheduler(folder: Path) -> Any:
    return FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")


@pytest.mark.parametrize(("tokens", "steps", "mu", "first", "last"), SCHEDULES)
def test_noise_levels_of_the_facts(tokens: int, steps: int, mu: float, first: list[float], last: list[float]) -> None:
    """The reference has them, which the next test goes by."""
    assert reference.mu(tokens, steps) == pytest.approx(mu, abs=1e-6)
    levels = reference.sigmas(tokens, steps)
    assert levels[: len(first)] == pytest.approx(first, abs=1e-5)
    # The facts give the last ones to four or five places.
    assert levels[len(levels) - len(last) :] == pytest.approx(last, abs=5e-5)


@given(tokens=st.integers(1, 9000) | st.integers(4290, 4310), steps=st.integers(1, 100))
def test_noise_levels_are_the_references(scheduler: Any, tokens: int, steps: int) -> None:
    """On both sides of 4300 tokens, from which on the number of steps does not count."""
    before_shift, mu = sampling.noise_schedule(tokens, steps)
    assert mu == pytest.approx(reference.mu(tokens, steps), rel=1e-12)
    scheduler.set_timesteps(sigmas=before_shift, mu=mu)
    levels = reference.sigmas(tokens, steps)
    assert scheduler.sigmas.tolist() == pytest.approx(levels, abs=1e-6)
    assert scheduler.timesteps.tolist() == pytest.approx([1000 * level for level in levels[:-1]], abs=1e-3)


def velocities(values: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    return arrays.arrays(np.float32, (2, 3, 4), elements=values)


NUMBERS = st.just(0.0) | st.floats(-100, 100, width=32)


@given(
    conditional=velocities(NUMBERS),
    unconditional=velocities(NUMBERS),
    scale=st.sampled_from([0.0, 0.5, 1.0, 4.0, 5.0, -1.0]),
)
def test_guidance_is_the_references(conditional: np.ndarray, unconditional: np.ndarray, scale: float) -> None:
    pair = torch.from_numpy(conditional), torch.from_numpy(unconditional)
    found = sampling.guide(*pair, scale)
    torch.testing.assert_close(found, reference.guided(*pair, scale), rtol=1e-6, atol=0)
    assert found.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_guidance_computes_in_its_own_dtype(dtype: torch.dtype) -> None:
    """And a length of zero stays zero."""
    conditional, unconditional = noise(seed=3).to(dtype), noise(seed=4).to(dtype)
    found = sampling.guide(conditional, unconditional, 4.0)
    assert found.dtype == dtype
    expected = reference.guided(conditional, unconditional, 4.0)
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
    zero, other = torch.zeros(1, 2, 4, dtype=dtype), torch.ones(1, 2, 4, dtype=dtype)
    for arguments in ((zero, zero, 4.0), (zero, other, 4.0), (other, zero, 0.0), (other, 2 * other, 2.0)):
        assert torch.equal(sampling.guide(*arguments), zero)


@pytest.mark.parametrize("latents", [None, noise()])
def test_noise_is_where_the_model_is(latents: torch.Tensor | None) -> None:
    found = sampling.initial_latents((1, 24, 128), None, latents, torch.device("meta"), torch.bfloat16)
    assert (found.is_meta, found.dtype, tuple(found.shape)) == (True, torch.bfloat16, (1, 24, 128))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_are_denormalized_and_then_unpatched(dtype: torch.dtype) -> None:
    mean, variance = noise(seed=5)[0, 0].to(dtype), noise(seed=6)[0, 0].square().to(dtype)
    variance[0] = 0
    latents = sampling.unpack_latents(noise(2), *GRID).to(dtype)
    found = sampling.unpatchify(sampling.denormalize(latents, mean, variance, 1e-4))
    assert (found.dtype, found.shape) == (dtype, (2, 32, 8, 12))
    expected = reference.decode_latents(noise(2), *GRID, mean, variance, 1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
