"""Harm by gradients and by measuring: their definitions, and how well they agree on a trained model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from converter import Recipe, find_recipe
from converter.conversion.planning.plan import Plan
from converter.conversion.planning.planner import plan_with_sdnq
from converter.errors import ImageError, LensconvError, MemoryLimitError, UnsupportedCheckpoint, UsageError
from converter.measurement.sensitivity import gradients
from converter.measurement.sensitivity.calls import Call, record_calls, repeat
from converter.measurement.sensitivity.gradients import estimate_harms
from converter.measurement.sensitivity.loaded import LoadedOriginal
from converter.measurement.sensitivity.measured import (
    Candidate,
    mean_square,
    measure_harms,
    measure_variant,
    predicted_error,
)
from converter.measurement.sensitivity.parts import read_parts, restore
from converter.measurement.sensitivity.storage import Storage, storages
from converter.measurement.sensitivity.swapping import Swapping
from converter.synthesis.synthesize import synthesize
from scripts.signs.drawing import SIDE
from scripts.signs.vocabulary import held_out_signs
from tests.sensitivity import PROMPTS, fill_spool, load

UINT4, INT8 = (find_recipe(f"sdnq-{dtype}", "") for dtype in ("uint4", "int8"))
#: A linear module that is the last to compute; without a bias, the output is linear in its weight.
LAST = "proj_out.weight"


class Example:
    """A loaded original, its calls, and candidates that are spooled."""

    def __init__(self, folder: Path, spool: Path, *recipes: Recipe, **options: Any) -> None:
        prompts, calls = options.pop("prompts", PROMPTS), options.pop("calls", 2)
        self.loaded, settings = load(folder, prompts, **{"dtype": "float32", "guidance": 1.0, **options})
        self.calls = record_calls(self.loaded, settings, calls)
        self.spool = spool
        everything = [replace(found, options={**found.options, "add_skip_keys": False}) for found in recipes]
        self.plans: list[Plan] = [plan_with_sdnq(self.loaded.checkpoint, recipe) for recipe in everything]
        for plan in self.plans:
            fill_spool(self.loaded.checkpoint, storages(plan).values(), spool)

    def candidates(self, plan: Plan) -> dict[str, Candidate]:
        """What the plan makes of what it quantizes, by source."""
        found = storages(plan)
        return {source: Candidate(found[source], plan.quantization_config) for source in plan.modules}


@pytest.fixture(scope="module")
def example(tiny_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Tests leave its original as it was."""
    return Example(tiny_repo, tmp_path_factory.mktemp("sensitivity") / "spool", UINT4, INT8)


def change_of(loaded: LoadedOriginal, storage: Storage, spool: Path) -> torch.Tensor:
    return restore(storage, read_parts(storage, spool)) - loaded.denoiser.get_parameter(storage.source).detach()


def changes_of_output(example: Example, storage: Storage, change: torch.Tensor) -> list[torch.Tensor]:
    """What a change of the last module's weight changes in the output of each call: exactly its linear part."""
    module, inputs = example.loaded.denoiser.get_submodule(storage.source.removesuffix(".weight")), list[torch.Tensor]()
    hook = module.register_forward_hook(lambda _, arguments, __: inputs.append(arguments[0]))
    with torch.no_grad():
        for call in example.calls:
            repeat(example.loaded.denoiser, call, example.loaded.device)
    hook.remove()
    return [torch.nn.functional.linear(states, change) for states in inputs]


@pytest.mark.parametrize("is_kept", [False, True])
def test_harm_by_gradients_is_what_it_is_defined_as(is_kept: bool, example: Example) -> None:
    """For the drawn directions, and close to the squared error itself with many of them."""
    loaded, calls, plan = example.loaded, example.calls, example.plans[0]
    if is_kept:
        weight = loaded.denoiser.get_parameter(LAST).detach()
        kept = storages(plan)["img_in.bias"]
        spec = replace(kept.parts[""], name=LAST, shape=tuple(weight.shape))
        storage, change = Storage(LAST, {"": spec}, None), weight.bfloat16().float() - weight
    else:
        storage = example.candidates(plan)[LAST].storage
        change = change_of(loaded, storage, example.spool)
    changes = changes_of_output(example, storage, change)
    total, probes = 0.0, 60
    samples = probes * len(calls)
    for number, (call, found) in enumerate(zip(calls, changes, strict=True)):
        generator = torch.Generator().manual_seed(5 + number)
        norm = float(call.output[0].double().square().sum())
        for _ in range(probes):
            direction = torch.randn(call.output[0].shape, generator=generator)
            total += float((direction.double() * found.double()).sum()) ** 2 / norm
    estimate = estimate_harms(loaded, calls, [storage], example.spool, probes=probes, seed=5)
    assert estimate == {(LAST, storage.key): pytest.approx(total / samples, rel=1e-4)}
    norms = [float(call.output[0].double().square().sum()) for call in calls]
    true = sum(float(found.double().square().sum()) / norm for found, norm in zip(changes, norms, strict=True))
    # Four standard deviations of the mean of so many squares of normal numbers.
    assert total / samples == pytest.approx(true / len(calls), rel=4 * math.sqrt(2 / samples))
    if not is_kept:
        with Swapping(loaded, example.spool) as swapping:
            measured = measure_harms(loaded, swapping, calls, [example.candidates(plan)[LAST]])
        assert measured == {(LAST, storage.key): pytest.approx(true / len(calls), rel=1e-4)}


def test_gradients_leave_the_model_as_it_was_and_repeat_themselves(example: Example) -> None:
    """Also with checkpointing, and with changes that are restored anew in every pass."""
    loaded, last = example.loaded, f"transformer_blocks.{example.loaded.denoiser.config.num_layers - 1}."
    candidates = example.candidates(example.plans[0])
    found = [item.storage for source, item in candidates.items() if source.startswith((last, LAST))]
    parameters = dict(loaded.denoiser.named_parameters())
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}

    def estimated(**options: Any) -> Any:
        return estimate_harms(loaded, example.calls[:2], found, example.spool, **{"probes": 2, **options})

    harms = estimated()
    assert harms == estimated() == estimated(kept_bytes=0)
    assert estimated(checkpointing=True) == pytest.approx(harms, rel=1e-5)
    assert harms != pytest.approx(estimated(seed=1), rel=1e-3)
    assert harms.keys() == {(storage.source, storage.key) for storage in found}
    # The last block computes one of these for nothing, and does not call the others.
    assert sorted(source.removeprefix(last) for (source, _), harm in harms.items() if harm == 0) == [
        *("attn.to_add_out.weight", "txt_mlp.w1.weight", "txt_mlp.w2.weight", "txt_mlp.w3.weight")
    ]
    for name, parameter in parameters.items():
        assert parameter.requires_grad == before[name]
        assert parameter.grad is None
        assert not parameter._post_accumulate_grad_hooks
    assert loaded.denoiser.gradient_checkpointing is False
    # A later run repeats only calls that it does not know, with the same result.
    noted: dict[int, Any] = {}
    assert estimated(note=noted.__setitem__) == harms
    assert list(noted) == [0, 1]
    second = noted.pop(1)
    again: dict[int, Any] = {}
    assert estimated(finished=noted, note=again.__setitem__) == harms
    assert again == {1: second}
    key = next(iter(harms))
    incomplete = {name: value for name, value in second.items() if name != key}
    assert estimated(finished={0: noted[0], 1: incomplete}, note=again.__setitem__) == harms
    doubled = {0: {name: 2 * value for name, value in noted[0].items()}, 1: second}
    assert estimated(finished=doubled)[key] == pytest.approx((2 * noted[0][key] + second[key]) / 2)


def test_what_cannot_be_differentiated(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, calls = example.loaded, example.calls[:1]
    storage = example.candidates(example.plans[0])[LAST].storage

    def fails(error: type[LensconvError], message: str, found: list[Call] = calls, **options: Any) -> None:
        with pytest.raises(error, match=message):
            estimate_harms(loaded, found, [storage], example.spool, **options)

    zero = replace(calls[0], output=(torch.zeros_like(calls[0].output[0]),))
    fails(ImageError, "prompt a red cube, step 0: the denoiser's output is zero", [zero])
    with monkeypatch.context() as patched:
        patched.setattr(loaded.denoiser, "_supports_gradient_checkpointing", False, raising=False)
        fails(UsageError, "LensTransformer2DModel does not offer gradient checkpointing", checkpointing=True)
    with monkeypatch.context() as patched:
        drawn = torch.randn
        patched.setattr(torch, "randn", lambda *shape, **options: drawn(*shape, **options) * 3e38)
        fails(ImageError, f"^{LAST}: its gradient in prompt a red cube, step 0, is not finite")
    with monkeypatch.context() as patched:
        patched.setattr(gradients, "free_memory_bytes", lambda: 1000)
        fails(MemoryLimitError, r"^gradients take at least [\d.]+ kB more memory, but only 1.0 kB are free")

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(torch.autograd, "backward", full)
        fails(MemoryLimitError, "^gradients: there is not enough memory: .*DefaultCPUAllocator")
    monkeypatch.setattr(loaded.denoiser.proj_out, "forward", lambda *_: (_ for _ in ()).throw(ValueError("no shape")))
    fails(UnsupportedCheckpoint, "cannot be used: no shape")


def test_a_variant_without_effect_is_refused(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules whose output is not used may change nothing, and so may those that are not called or stay as they are."""
    loaded, calls, found = example.loaded, example.calls, example.candidates(example.plans[0])
    last = f"transformer_blocks.{loaded.denoiser.config.num_layers - 1}"
    unused = [f"{last}.attn.to_add_out.weight", f"{last}.txt_mlp.w1.weight"]
    with Swapping(loaded, example.spool) as swapping:
        harms = measure_harms(loaded, swapping, calls, [found[source] for source in (*unused, LAST)])
        assert [harm > 0 for harm in harms.values()] == [False, False, True]
        assert measure_variant(loaded, swapping, calls, {}, {})[0].error == 0
        original = loaded.denoiser.proj_out
        make = Swapping._make_layers

        def with_old_weights(*arguments: Any) -> Any:
            layers = make(*arguments)
            for layer in layers.values():
                layer.forward_func = lambda _, states: original(states)
            return layers

        monkeypatch.setattr(Swapping, "_make_layers", with_old_weights)
        with pytest.raises(UnsupportedCheckpoint, match="proj_out computes as before, although its weight"):
            measure_harms(loaded, swapping, calls, [found[LAST]])
    assert loaded.denoiser.proj_out is original


def agreement(first: dict[Any, float], second: dict[Any, float]) -> float:
    keys = sorted(first.keys() & second.keys())
    return float(spearmanr([first[key] for key in keys], [second[key] for key in keys])[0])


@pytest.mark.long
def test_gradients_predict_what_is_measured_on_a_trained_model(tmp_path: Path) -> None:
    """Ranks of modules and candidates, and the error of a recipe that quantizes them all."""
    synthesize(tmp_path / "signs", preset="signs")
    prompts = [sign.prompt for sign in held_out_signs(2)]
    found = Example(
        tmp_path / "signs", tmp_path / "spool", UINT4, INT8, prompts=prompts, calls=3, steps=8, height=SIDE, width=SIDE
    )
    candidates = [candidate for plan in found.plans for candidate in found.candidates(plan).values()]
    with Swapping(found.loaded, found.spool) as swapping:
        measured = measure_harms(found.loaded, swapping, found.calls, candidates)
        stored = [item.storage for item in candidates]
        harms = estimate_harms(found.loaded, found.calls, stored, found.spool, probes=16)
        assert agreement(harms, measured) > 0.95
        for plan in found.plans:
            own = found.candidates(plan)
            keys = [candidate.key for candidate in own.values()]
            assert agreement({key: harms[key] for key in keys}, {key: measured[key] for key in keys}) > 0.9
            together = {source: candidate.storage for source, candidate in own.items()}
            differences = measure_variant(found.loaded, swapping, found.calls, together, plan.quantization_config)
            true = math.sqrt(mean_square(differences))
            assert predicted_error(harms[key] for key in keys) == pytest.approx(true, rel=0.2)


def test_the_predicted_error_is_the_root_of_the_sum() -> None:
    found: Callable[..., float] = predicted_error
    assert found([0.09, 0.16]) == pytest.approx(0.5)
    assert found([]) == 0
