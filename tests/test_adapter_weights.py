"""New weights of adapted modules equal those that diffusers and PEFT merge in float32, bit for bit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.conversion.adapters.additions import BLOCK_ROWS, Addition, check_bytes
from converter.conversion.adapters.choice import AdapterChoice
from converter.conversion.adapters.modules import Factor, ModuleAdapter, ModuleShape
from converter.conversion.adapters.weights import (
    NewWeight,
    blocks,
    blocks_are_exact,
    product,
    start,
    torch_threads,
)
from tests import lora_files
from tests.lora_files import ALPHA, RANK, Tensors, alphas_of, down_and_up, factors, kohya, paths_of, prefixed, write
from tests.tiny_models import build_model

ORDERS = [(1.0,), (0.7,), (-0.5,), (1.0, 0.7), (0.7, -0.5)]
#: Adapters of two kinds: in the dtype of the weights, and in a shorter one.
DTYPES = [torch.float32, torch.bfloat16]
Make = Callable[[Any, int], Tensors]


def check(
    folder: Path,
    scales: Sequence[float],
    pipeline_class: str,
    models: Mapping[str, Any],
    make: Make,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Compare lensconv with diffusers for adapters of some scales."""
    files = [write(folder / f"{number}.safetensors", make(models, number), metadata) for number, _ in enumerate(scales)]
    choices = [AdapterChoice(file, scale) for file, scale in zip(files, scales, strict=True)]
    adapters = [lora_files.resolve(choice, pipeline_class, models) for choice in choices]
    before, ours = lora_files.states(models), lora_files.states(models)
    for component, model in models.items():
        lora_files.add(ours[component], model, component, adapters, step=50)
    is_lens = pipeline_class == "LensPipeline"
    pipeline = lora_files.lens_pipeline(models["transformer"]) if is_lens else None
    lora_files.fuse(pipeline or lora_files.pipeline_of(pipeline_class, **models), choices)
    theirs = lora_files.states(models)
    for component, state in theirs.items():
        assert ours[component].keys() == state.keys()
        for name, tensor in state.items():
            assert torch.equal(ours[component][name], tensor), name
        for path in adapters[0].modules[component]:
            assert not torch.equal(before[component][f"{path}.weight"], state[f"{path}.weight"]), path


def flux() -> dict[str, Any]:
    return {"transformer": build_model("FluxTransformer2DModel")}


def unet() -> dict[str, Any]:
    return {"unet": build_model("UNet2DConditionModel")}


@pytest.mark.parametrize("scales", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_flux_with_names_of_peft(tmp_path: Path, scales: Sequence[float], dtype: torch.dtype) -> None:
    def make(models: Any, seed: int) -> Tensors:
        model = models["transformer"]
        tensors = prefixed(factors(model, paths_of(model), seed, dtype), "transformer")
        # diffusers keeps alphas as tensors here, and PEFT computes in their dtype.
        alphas = alphas_of([f"transformer.{path}" for path in paths_of(model)])
        return tensors | ({name: alpha.bfloat16() for name, alpha in alphas.items()} if seed else {})

    check(tmp_path, scales, "FluxPipeline", flux(), make)


@pytest.mark.parametrize("scales", ORDERS)
def test_flux_with_names_of_kohya(tmp_path: Path, scales: Sequence[float]) -> None:
    def make(models: Any, _seed: int) -> Tensors:
        model = models["transformer"]
        sizes = lora_files.flux_sizes(model.inner_dim, 2, 2)
        # diffusers knows the parts of this layer in the published size only.
        sizes = {name: size for name, size in sizes.items() if "linear1" not in name}
        return lora_files.of_authors(sizes, "kohya")

    check(tmp_path, scales, "FluxPipeline", flux(), make)


@pytest.mark.parametrize("scales", [(0.7,)])
def test_flux_with_names_of_xlabs(tmp_path: Path, scales: Sequence[float]) -> None:
    def make(models: Any, _seed: int) -> Tensors:
        size = models["transformer"].inner_dim
        outputs = {"qkv_lora1": 3 * size, "qkv_lora2": 3 * size, "proj_lora1": size, "proj_lora2": size}
        stems = {f"double_blocks.{block}.processor.{part}": outputs[part] for block in (0, 1) for part in outputs}
        ups = {f"{stem}.up.weight": torch.randn(rows, RANK) for stem, rows in stems.items()}
        return ups | {f"{stem}.down.weight": torch.randn(RANK, size) for stem in stems}

    check(tmp_path, scales, "FluxPipeline", flux(), make)


@pytest.mark.parametrize("scales", ORDERS)
def test_sdxl_with_names_of_kohya(tmp_path: Path, scales: Sequence[float]) -> None:
    def make(models: Any, seed: int) -> Tensors:
        return kohya(factors(models["unet"], paths_of(models["unet"]), seed), "lora_unet_")

    check(tmp_path, scales, "StableDiffusionXLPipeline", unet(), make)


@pytest.mark.parametrize("scales", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sdxl_with_names_of_peft(tmp_path: Path, scales: Sequence[float], dtype: torch.dtype) -> None:
    def make(models: Any, seed: int) -> Tensors:
        return prefixed(factors(models["unet"], paths_of(models["unet"]), seed, dtype), "unet")

    check(tmp_path, scales, "StableDiffusionXLPipeline", unet(), make)


@pytest.mark.parametrize("scales", [(0.7, -0.5)])
def test_sdxl_with_old_names_of_diffusers(tmp_path: Path, scales: Sequence[float]) -> None:
    def make(models: Any, seed: int) -> Tensors:
        found = {}
        for path in paths_of(models["unet"]):
            if ".attn1.to_" in path or ".attn2.to_" in path:
                base, _, part = path.replace("to_out.0", "to_out").rpartition(".to_")
                for name, tensor in factors(models["unet"], [path], seed).items():
                    factor = "down" if "lora_A" in name else "up"
                    found[f"unet.{base}.processor.to_{part}_lora.{factor}.weight"] = tensor
        return found

    check(tmp_path, scales, "StableDiffusionXLPipeline", unet(), make)


@pytest.mark.parametrize("scales", [(1.0,), (0.7, -0.5)])
def test_sdxl_with_text_encoders(tmp_path: Path, scales: Sequence[float]) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPTextConfig(**sizes, vocab_size=100, projection_dim=48)
    models = unet() | {"text_encoder": CLIPTextModel(config), "text_encoder_2": CLIPTextModelWithProjection(config)}

    def make(models: Any, seed: int) -> Tensors:
        attention = [path for path in paths_of(models["unet"]) if ".attn" in path]
        found = kohya(factors(models["unet"], attention, seed), "lora_unet_")
        for prefix, name in (("lora_te1_", "text_encoder"), ("lora_te2_", "text_encoder_2")):
            paths = [path for path in paths_of(models[name]) if path != "text_projection"]
            # Kohya's names are those of transformers 4.
            tensors = {
                f"text_model.{path.removeprefix('text_model.')}": tensor[:RANK]
                if "lora_A" in path
                else tensor[:, :RANK]
                for path, tensor in factors(models[name], paths, seed).items()
            }
            found |= kohya({path: tensor.contiguous() for path, tensor in tensors.items()}, prefix)
        return found

    check(tmp_path, scales, "StableDiffusionXLPipeline", models, make)


@pytest.mark.parametrize("scales", ORDERS)
@pytest.mark.parametrize("form", ["peft", "alphas"])
def test_lens(tmp_path: Path, scales: Sequence[float], form: str) -> None:
    def make(models: Any, seed: int) -> Tensors:
        paths = paths_of(models["transformer"])
        tensors = factors(models["transformer"], paths, seed, torch.bfloat16)
        if form == "peft":
            return prefixed(tensors, "base_model.model")
        return prefixed(down_and_up(tensors) | alphas_of(paths), "diffusion_model")

    check(tmp_path, scales, "LensPipeline", {"transformer": lora_files.build_lens()}, make)


@pytest.mark.parametrize(
    ("name", "pipeline_class"),
    [("QwenImageTransformer2DModel", "QwenImagePipeline"), ("ZImageTransformer2DModel", "ZImagePipeline")],
)
def test_names_of_comfyui(tmp_path: Path, name: str, pipeline_class: str) -> None:
    def make(models: Any, seed: int) -> Tensors:
        paths = paths_of(models["transformer"])
        tensors = factors(models["transformer"], paths, seed, torch.bfloat16)
        return prefixed(down_and_up(tensors) | alphas_of(paths), "diffusion_model")

    check(tmp_path, (0.7,), pipeline_class, {"transformer": build_model(name)}, make)


OPTIONS: list[dict[str, Any]] = [
    {"use_rslora": True},
    {"lora_bias": True},
    {"alpha_pattern": {"to_q": 5, "img_qkv": 2, r"^proj_out": 7, r".*norm1\.linear": 9}},
    {"rank_pattern": {"to_q": 8, "img_qkv": 2}, "lora_alpha": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("is_lens", [False, True])
def test_configs_of_peft(tmp_path: Path, options: dict[str, Any], is_lens: bool) -> None:
    peft: Any = pytest.importorskip("peft")
    models = {"transformer": lora_files.build_lens()} if is_lens else flux()
    model = models["transformer"]
    # PEFT cannot merge a bias into a module without one.
    names = [
        path for path in paths_of(model) if model.get_submodule(path).bias is not None or "lora_bias" not in options
    ]
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": names, "init_lora_weights": False}
    config = peft.LoraConfig(**settings | options)
    source = build_model("FluxTransformer2DModel") if not is_lens else lora_files.build_lens()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source.add_adapter(config, "one")
        saved = peft.get_peft_model_state_dict(source, adapter_name="one")
    state = {name: tensor.contiguous() for name, tensor in saved.items()}
    content = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    written = {f"transformer.{key}": value for key, value in content.items()}
    metadata = {"lora_adapter_metadata": json.dumps(written)}
    if is_lens:
        # PEFT's own format: the config is beside the weights.
        metadata = {}
        (tmp_path / "adapter_config.json").write_text(json.dumps(content))

    def make(_models: Any, _seed: int) -> Tensors:
        return prefixed(state, "base_model.model" if is_lens else "transformer")

    check(tmp_path, (0.7,), "LensPipeline" if is_lens else "FluxPipeline", models, make, metadata)


SHAPES = [
    (64, 64),
    (257, 333),
    (1280, 320),
    (3072, 768),
    (65, 40),
    (7, 9),
    (320, 16, 3, 3),
    (96, 64, 1, 1),
    (130, 4, 3, 3),
]


@pytest.mark.parametrize("weight", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 4, 16, 33, 128])
def test_blocks_equal_the_whole_product(weight: tuple[int, ...], rank: int) -> None:
    shape = ModuleShape(weight, has_bias=False)
    found = [*blocks(shape.rows)]
    assert found[0][0] == 0
    assert found[-1][1] == shape.rows
    assert all(before[1] == after[0] for before, after in pairwise(found))
    assert all(last - first >= min(BLOCK_ROWS, shape.rows) for first, last in found)
    is_exact = blocks_are_exact(shape, rank, torch.get_num_threads())
    # On the processors that this ran on; elsewhere, the whole product would be used, as for some convolutions.
    assert is_exact or len(weight) == 4
    generator = torch.Generator().manual_seed(rank)
    down = torch.randn(rank, *weight[1:], generator=generator)
    up = torch.randn(weight[0], rank, *(1 for _ in weight[2:]), generator=generator)
    with torch_threads(1):
        parts = [product(shape, down, up[first:last]) for first, last in found]
    assert not is_exact or torch.equal(torch.cat(parts), product(shape, down, up))
    assert check_bytes(shape, rank) > shape.rows * shape.row_numbers * 4


@pytest.mark.parametrize(("weight", "rank"), [((517, 1), 64), ((320, 320), 1024), ((64, 64), 768)], ids=str)
def test_shapes_whose_blocks_may_differ(weight: tuple[int, int], rank: int) -> None:
    """Products with a vector, and of ranks that MKL splits, are not sums in one order; then the whole one counts."""
    generator = torch.Generator().manual_seed(0)
    shape, threads = ModuleShape(weight, has_bias=False), torch.get_num_threads()
    down = torch.randn(rank, weight[1], generator=generator)
    up = torch.randn(weight[0], rank, generator=generator)
    base = torch.randn(weight, generator=generator)
    expected = base + product(shape, down, up) * 0.7
    with torch_threads(1):
        parts = [product(shape, down, up[first:last]) for first, last in blocks(shape.rows)]
    assert blocks_are_exact(shape, rank, threads) == torch.equal(torch.cat(parts), product(shape, down, up))
    adapter = ModuleAdapter(Factor(down.shape, None, down), Factor(up.shape, None, up), 0.7)
    in_blocks = blocks_are_exact(shape, rank, threads)
    new = NewWeight(shape, [adapter], in_blocks=in_blocks)
    with torch_threads(1 if in_blocks else threads):
        for first in range(0, shape.rows, 100):
            new.add(base[first : first + 100], first)
    assert torch.equal(base, expected)


@pytest.mark.parametrize("step", [1, 7, 64, 100, 1000])
def test_any_rows_give_the_same_weight(step: int) -> None:
    generator = torch.Generator().manual_seed(2)
    shape = ModuleShape((200, 96), has_bias=False)
    pairs = [(torch.randn(8, 96, generator=generator), torch.randn(200, 8, generator=generator)) for _ in range(2)]
    adapters = [
        ModuleAdapter(Factor((8, 96), None, down), Factor((200, 8), None, up), scaling)
        for (down, up), scaling in zip(pairs, (0.7, -1.5), strict=True)
    ]
    base = torch.randn(200, 96, generator=generator)
    expected = base.clone()
    for (down, up), scaling in zip(pairs, (0.7, -1.5), strict=True):
        expected += (up @ down) * scaling
    addition = Addition(shape, tuple(adapters), in_blocks=True)
    new = start(addition)
    for first in range(0, 200, step):
        new.add(base[first : first + step], first)
    assert torch.equal(base, expected)
    assert addition.fixed_bytes > 2 * 8 * (200 + 96) * 4
    assert addition.check_bytes == check_bytes(shape, 8)
