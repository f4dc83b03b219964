"""Variants in a loaded denoiser: they compute what their releases compute, and the original comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converter import Recipe, Rule, convert, find_recipe
from converter.conversion.planning.plan import Plan
from converter.conversion.planning.planner import plan_with_sdnq
from converter.errors import MalformedCheckpoint, MissingInput, UnsupportedCheckpoint
from converter.measurement.sensitivity.calls import record_calls, replay
from converter.measurement.sensitivity.loaded import LoadedOriginal
from converter.measurement.sensitivity.storage import storages
from converter.measurement.sensitivity.swapping import Swapping
from converter.models.classes import find_class
from converter.synthesis.synthesize import synthesize
from tests.conftest import Lensconv
from tests.generations import pixels
from tests.sensitivity import PROMPTS, fill_spool, load
from tests.tiny_models import WEIGHTS
from tests.tiny_pipelines import save_stable_diffusion

UINT4 = replace(find_recipe("lens-uint4-static", ""), name="uint4", rules=())
INT8 = find_recipe("sdnq-int8", "")


def small(recipe: Recipe, **options: Any) -> Recipe:
    """The same for small weights, too."""
    return replace(recipe, options={**recipe.options, "minimum_allowed_numel": 1024, **options})


def planned(loaded: LoadedOriginal, recipe: Recipe, spool: Path) -> Plan:
    """A plan whose weights are spooled."""
    plan = plan_with_sdnq(loaded.checkpoint, recipe)
    fill_spool(loaded.checkpoint, storages(plan).values(), spool)
    return plan


#: Pipelines, recipes and dtypes whose variants are compared with their releases.
CASES: tuple[Any, ...] = (
    ("tiny", UINT4, "bfloat16"),
    ("stable-diffusion", small(UINT4, quant_conv=True), "float32"),
    *(
        pytest.param(*case, marks=pytest.mark.long)
        for case in (
            ("tiny", small(INT8), "float32"),
            ("tiny", small(INT8, use_quantized_matmul=True, dequantize_fp32=False), "bfloat16"),
            ("tiny", UINT4, "float32"),
            # The loader casts the scales of these modules as those of all.
            ("tiny", UINT4.with_rules([Rule("*.attn.*", options={"dequantize_fp32": True})]), "bfloat16"),
            ("tiny", small(UINT4, use_svd=True, svd_rank=4, use_hadamard=True), "bfloat16"),
            *(
                (preset, recipe, dtype)
                for preset in ("tiny-flux", "tiny-sdxl")
                for recipe in (small(UINT4), small(INT8, quant_conv=preset == "tiny-sdxl"))
                for dtype in ("bfloat16", "float32")
            ),
        )
    ),
)


@pytest.mark.parametrize(("pipeline", "recipe", "dtype"), CASES)
def test_a_variant_computes_what_its_release_computes(
    pipeline: str, recipe: Recipe, dtype: str, tmp_path: Path, lensconv: Lensconv
) -> None:
    """Bit for bit: the denoiser's output for the original's calls, and the image."""
    source = tmp_path / "source"
    if pipeline == "stable-diffusion":
        save_stable_diffusion(source, checks=False)
    else:
        synthesize(source, preset=pipeline)
    convert(source, tmp_path / "release", recipe)
    loaded, settings = load(source, PROMPTS[:1], dtype=dtype)
    calls = record_calls(loaded, settings, 2)
    released_tensors = load_file(tmp_path / "release" / loaded.component / WEIGHTS)
    plan = plan_with_sdnq(loaded.checkpoint, recipe)
    assert len(plan.modules) > 10
    for storage in storages(plan).values():
        if storage.quantized is not None:
            parts = {part: released_tensors[spec.name] for part, spec in storage.parts.items()}
            save_file(parts, storage.spool_file(tmp_path))
    with Swapping(loaded, tmp_path) as swapping:
        swapping.use(storages(plan), plan.quantization_config)
        found = replay(loaded.denoiser, calls, loaded.device)
        image = np.asarray(loaded.draw(settings[PROMPTS[0]])).astype(int)
    released = find_class(loaded.checkpoint.class_name, "").from_pretrained
    if pipeline == "tiny":
        from converter.lens import LensTransformer2DModel

        released = LensTransformer2DModel.from_pretrained
    denoiser = released(tmp_path / "release" / loaded.component, torch_dtype=loaded.dtype).eval()
    assert replay(denoiser, calls, loaded.device) == found
    assert all(difference.error > 0 for difference in found)
    line = ("--dtype", dtype, "--steps", 3, "--height", 64, "--width", 64)
    release, output = tmp_path / "release", tmp_path / "image.png"
    outcome = lensconv("generate", release, "--prompt", PROMPTS[0], "--out", output, *line)
    assert outcome.code == 0, outcome.stderr
    assert (pixels(output) == image).all()


@pytest.fixture(scope="module")
def original(tiny_repo: Path) -> tuple[LoadedOriginal, Mapping[str, Any]]:
    """Tests leave it as it was."""
    return load(tiny_repo, PROMPTS[:1], dtype="float32")


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sensitivity") / "spool"


@pytest.fixture(scope="module")
def plans(original: tuple[LoadedOriginal, Any], spool: Path) -> tuple[Plan, Plan]:
    """One that quantizes all to uint4, and one with the attention in int8."""
    loaded, _ = original
    mixed = UINT4.with_rules([Rule("*.attn.*", options={"weights_dtype": "int8"})])
    return planned(loaded, UINT4, spool), planned(loaded, mixed, spool)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_only_what_differs_is_exchanged(
    original: tuple[LoadedOriginal, Any], plans: tuple[Plan, Plan], spool: Path
) -> None:
    loaded, _ = original
    denoiser, modules = loaded.denoiser, dict(loaded.denoiser.named_modules())
    before, attributes = state(denoiser), dict(vars(denoiser))
    with Swapping(loaded, spool) as swapping:
        layers: list[dict[str, Any]] = []
        for plan in plans:
            swapping.use(storages(plan), plan.quantization_config)
            layers.append(dict(denoiser.named_modules()))
        for module in plans[0].modules.values():
            first, second = (found[module.name] for found in layers)
            assert first is not modules[module.name]
            assert (first is second) == (".attn." not in module.name)
        kept = set(modules) - {module.name for module in plans[0].modules.values()}
        assert all(layers[1][name] is modules[name] for name in kept)
        # One tensor alone.
        one = next(source for source in plans[0].modules if ".attn." in source)
        swapping.use({one: storages(plans[1])[one]}, plans[1].quantization_config)
        changed = [name for name, module in denoiser.named_modules() if module is not modules[name]]
        assert changed == [plans[1].modules[one].name]
    assert all(module is modules[name] for name, module in denoiser.named_modules())
    after = state(denoiser)
    assert list(after) == list(before)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert vars(denoiser).keys() == attributes.keys()


def test_what_is_kept_is_rounded_where_the_pipeline_computes_in_float32(
    original: tuple[LoadedOriginal, Any], plans: tuple[Plan, Plan], spool: Path
) -> None:
    """Also the bias of a quantized layer that is in place already."""
    loaded, _ = original
    found, quantization = storages(plans[0]), plans[0].quantization_config
    before = state(loaded.denoiser)
    module = next(iter(plans[0].modules.values()))
    alone = {module.source: found[module.source]}
    with Swapping(loaded, spool) as swapping:
        swapping.use(alone, quantization)
        layer = loaded.denoiser.get_submodule(module.name)
        assert torch.equal(layer.bias, before[f"{module.name}.bias"])
        swapping.use(found, quantization)
        assert loaded.denoiser.get_submodule(module.name) is layer
        now = state(loaded.denoiser)
        names = [kept.source for kept in found.values() if kept.quantized is None]
        assert f"{module.name}.bias" in names
        for name in names:
            assert torch.equal(now[name], before[name].bfloat16().float())
            assert now[name].dtype == torch.float32
        swapping.use(alone, quantization)
        assert torch.equal(layer.bias, before[f"{module.name}.bias"])
        swapping.use(found, quantization)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(loaded.denoiser).items())


def test_layers_without_effect(original: tuple[LoadedOriginal, Any], plans: tuple[Plan, Plan], spool: Path) -> None:
    """Layers that compute as before; of several, one that computes something else is enough."""
    loaded, settings = original
    (call,) = record_calls(loaded, settings, 1)
    plan, modules = plans[0], dict(loaded.denoiser.named_modules())
    names = [module.name for module in plan.modules.values() if ".img_mlp." in module.name][:2]
    found = {module.source: storages(plan)[module.source] for module in plan.modules.values() if module.name in names}
    with Swapping(loaded, spool) as swapping:
        swapping.use(found, plan.quantization_config)
        swapping.refuse_no_effect(call)
        for name in names:
            loaded.denoiser.get_submodule(name).forward_func = lambda _, states, name=name: modules[name](states)
            if name == names[0]:
                swapping.refuse_no_effect(call)
        with pytest.raises(UnsupportedCheckpoint, match=rf"{names[0]} computes as before, although its weight was"):
            swapping.refuse_no_effect(call)


def test_parts_that_are_missing_or_of_something_else(
    original: tuple[LoadedOriginal, Any], plans: tuple[Plan, Plan], tmp_path: Path
) -> None:
    """Then the original stays in place."""
    loaded, _ = original
    plan = plans[1]
    source = next(source for source, module in plan.modules.items() if ".attn." in source and len({*module.shape}) == 1)
    storage = storages(plan)[source]
    fill_spool(loaded.checkpoint, [storage], tmp_path)
    file = storage.spool_file(tmp_path)
    good, modules = load_file(file), dict(loaded.denoiser.named_modules())
    swapping = Swapping(loaded, tmp_path)
    for tensors in (
        {**good, "weight": good["weight"][:-1].clone()},
        {**good, "scale": good["scale"].double()},
        {**good, "svd_up": good["scale"].clone()},
        {name: tensor for name, tensor in good.items() if name != "scale"},
    ):
        save_file(tensors, file)
        with pytest.raises(MalformedCheckpoint, match=f"is not what {source} becomes"):
            swapping.use({source: storage}, plan.quantization_config)
    file.unlink()
    with pytest.raises(MissingInput, match=file.name):
        swapping.use({source: storage}, plan.quantization_config)
    save_file(good, file)
    kept_all = {**plan.quantization_config, "modules_to_not_convert": [f"{plan.modules[source].name}.weight"]}
    with pytest.raises(UnsupportedCheckpoint, match="as a quantized module"):
        swapping.use({source: storage}, kept_all)
    assert all(module is modules[name] for name, module in loaded.denoiser.named_modules())
