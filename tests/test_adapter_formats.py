"""Names that published adapters have, for each class with a converter of its own in diffusers; and odd files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from converter import AdapterChoice, ConvertOptions, convert, plan
from converter.conversion.adapters.choice import parse_choice
from converter.conversion.adapters.file import open_adapter
from converter.errors import AdapterError, MissingInput, NonFiniteWeight, UsageError
from tests import lora_files
from tests.lora_files import ALPHA, RANK, Tensors, factors, flux_sizes, kohya, of_authors, paths_of, prefixed, write
from tests.test_adapter_weights import check
from tests.test_adapters_conversion import save_pipeline
from tests.tiny_models import build_model

Models = Mapping[str, Any]
#: (in, out) by the name of a module.
Sizes = Mapping[str, tuple[int, int]]
KOHYA, PEFT = ("lora_down", "lora_up"), ("lora_A", "lora_B")
#: Parts of the names of Wan's modules in diffusers, and what they are to its authors.
WAN = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    ".to_out.0": ".o",
    ".to_": ".",
    ".net.0.proj": ".0",
    ".net.2": ".2",
    "proj_out": "head.head",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.": "",
    "embedder.linear_1": "embedding.0",
    "embedder.linear_2": "embedding.2",
}
#: Blocks of a small UNet, as kohya's scripts for SDXL call them.
UNET = {
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.attentions.0": "middle_block.1",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
}


def sizes_of(models: Models, pattern: str = "") -> Sizes:
    """Sizes of the denoiser's Linear modules whose names contain a pattern."""
    model = models.get("unet") or models["transformer"]
    found = ((path, model.get_submodule(path)) for path in paths_of(model, (torch.nn.Linear,)))
    return {path: (module.in_features, module.out_features) for path, module in found if re.search(pattern, path)}


def spelled(sizes: Sizes, names: Mapping[str, str]) -> Sizes:
    """The same under names of which parts are replaced."""
    result = {}
    for path, size in sizes.items():
        name = path
        for old, new in names.items():
            name = name.replace(old, new)
        result[name] = size
    return result


def flat(sizes: Sizes) -> Sizes:
    """The same under names of kohya's scripts."""
    return spelled(sizes, {".": "_"})


def pairs(sizes: Sizes, prefix: str, parts: tuple[str, str], alpha: float = 0) -> Tensors:
    """Random factors for modules, in bfloat16, each with an alpha if there is one."""
    generator, result = torch.Generator().manual_seed(3), {}
    for name, (inputs, outputs) in sizes.items():
        down, up = (f"{prefix}{name}.{part}.weight" for part in parts)
        result[down] = torch.randn(RANK, inputs, generator=generator).bfloat16()
        result[up] = torch.randn(outputs, RANK, generator=generator).bfloat16()
        if alpha:
            result[f"{prefix}{name}.alpha"] = torch.tensor(alpha)
    return result


def wan(models: Models) -> Tensors:
    """As CausVid and lightx2v: with differences of biases, and of norms."""
    sizes = spelled(sizes_of(models), WAN)
    tensors = pairs(sizes, "diffusion_model.", KOHYA)
    tensors |= {f"diffusion_model.{name}.diff_b": torch.randn(outputs) for name, (_, outputs) in sizes.items()}
    for number, name in enumerate(("norm3.diff", "norm3.diff_b", "self_attn.norm_q.diff")):
        tensors[f"diffusion_model.blocks.0.{name}"] = torch.full((128,), float(number))
    return tensors


def flux2_sizes() -> Sizes:
    """Sizes of FLUX.2's modules under its authors' names."""
    sizes: dict[str, tuple[int, int]] = {}
    for block in (0, 1):
        for name in (f"double_blocks.{block}.img", f"double_blocks.{block}.txt"):
            sizes |= {f"{name}_attn.qkv": (128, 384), f"{name}_attn.proj": (128, 128)}
            sizes |= {f"{name}_mlp.0": (128, 768), f"{name}_mlp.2": (384, 128)}
        sizes |= {f"single_blocks.{block}.linear1": (128, 1152), f"single_blocks.{block}.linear2": (512, 128)}
    return sizes


def z_image_fused(_models: Models) -> Tensors:
    """As scripts for the original modules: queries, keys and values are one."""
    names = [f"layers.{block}.attention" for block in (0, 1)]
    fused = {f"{name}.qkv": (128, 384) for name in names} | {f"{name}.out": (128, 128) for name in names}
    return pairs(flat(fused), "lora_unet_", ("lora.down", "lora.up"))


def flux(models: Models, form: str) -> Tensors:
    """With a text encoder, whose alphas some converters multiply in place."""
    text = text_encoder(models["text_encoder"])
    if form == "mixture":
        found = pairs(flat(sizes_of(models, r"attn|embedder")), "lora_transformer_", KOHYA, ALPHA)
        return found | kohya(text, "lora_te1_")
    # diffusers knows the parts of this layer in the published size only.
    sizes = {name: size for name, size in flux_sizes(128, 2, 2).items() if "linear1" not in name}
    if form == "kohya":
        return of_authors(sizes, "kohya") | kohya(text, "lora_te1_")
    text |= {f"{name.partition('.lora')[0]}.alpha": torch.tensor(ALPHA) for name in text}
    found = pairs(sizes, "diffusion_model.", KOHYA, ALPHA) | unused_text_encoder()
    return found | prefixed(lora_files.down_and_up(text), "text_encoders.clip_l.transformer")


def unused_text_encoder() -> Tensors:
    """Factors of zeros, which ComfyUI writes for a text encoder that was not trained."""
    name = "text_encoders.t5xxl.transformer.x"
    return {f"{name}.{part}.weight": torch.zeros(4, 4) for part in KOHYA} | {f"{name}.alpha": torch.tensor(4.0)}


def text_encoder(model: Any) -> Tensors:
    """Factors of one rank, under the names of transformers 4."""
    result = {}
    for name, tensor in factors(model, paths_of(model), 5).items():
        first = tensor[:RANK] if "lora_A" in name else tensor[:, :RANK]
        result[f"text_model.{name.removeprefix('text_model.')}"] = first.contiguous()
    return result


def sd3(models: Models) -> Tensors:
    """For a text encoder, too."""
    model = models["transformer"]
    found = prefixed(factors(model, paths_of(model), 1, torch.float16), "transformer")
    return found | prefixed(text_encoder(models["text_encoder"]), "text_encoder")


def sana(models: Models) -> Tensors:
    """For convolutions, too; PEFT adds nothing to those by channel."""
    model = models["transformer"]
    return prefixed(factors(model, [path for path in paths_of(model) if "depth" not in path], 1), "transformer")


#: Classes of the models of a pipeline; the first is its denoiser.
CLASSES = {
    "WanPipeline": ("WanTransformer3DModel",),
    "Flux2Pipeline": ("Flux2Transformer2DModel",),
    "QwenImagePipeline": ("QwenImageTransformer2DModel",),
    "ZImagePipeline": ("ZImageTransformer2DModel",),
    "FluxPipeline": ("FluxTransformer2DModel", "CLIPTextModel"),
    "StableDiffusion3Pipeline": ("SD3Transformer2DModel", "CLIPTextModel"),
    "SanaPipeline": ("SanaTransformer2DModel",),
    "StableDiffusionXLPipeline": ("UNet2DConditionModel",),
}
Make = Callable[[Models], Tensors]
CASES: list[tuple[str, str, Make]] = [
    ("WanPipeline", "lightx2v", wan),
    ("WanPipeline", "alphas", lambda m: pairs(spelled(sizes_of(m, "blocks"), WAN), "diffusion_model.", KOHYA, ALPHA)),
    ("WanPipeline", "musubi", lambda m: pairs(flat(spelled(sizes_of(m, "blocks"), WAN)), "lora_unet_", KOHYA, ALPHA)),
    ("Flux2Pipeline", "authors", lambda _: pairs(flux2_sizes(), "diffusion_model.", PEFT)),
    ("Flux2Pipeline", "peft", lambda _: pairs(flux2_sizes(), "base_model.model.", PEFT)),
    ("Flux2Pipeline", "kohya", lambda _: pairs(flat(flux2_sizes()), "lora_unet_", KOHYA, ALPHA)),
    ("QwenImagePipeline", "lightning", lambda m: pairs(sizes_of(m, "blocks"), "", KOHYA, ALPHA)),
    ("QwenImagePipeline", "default", lambda m: pairs(sizes_of(m), "", ("lora_A.default", "lora_B.default"))),
    ("QwenImagePipeline", "kohya", lambda m: pairs(flat(sizes_of(m)), "lora_unet_", KOHYA, ALPHA)),
    ("ZImagePipeline", "kohya", lambda m: pairs(flat(sizes_of(m)), "lora_unet_", KOHYA, ALPHA)),
    ("ZImagePipeline", "fused", z_image_fused),
    ("FluxPipeline", "kohya", partial(flux, form="kohya")),
    ("FluxPipeline", "comfyui", partial(flux, form="comfyui")),
    ("FluxPipeline", "mixture", partial(flux, form="mixture")),
    ("StableDiffusion3Pipeline", "peft", sd3),
    ("SanaPipeline", "peft", sana),
    (
        "StableDiffusionXLPipeline",
        "kohya",
        lambda m: pairs(flat(spelled(sizes_of(m, "attentions"), UNET)), "lora_unet_", KOHYA, ALPHA),
    ),
]


def models_of(pipeline_class: str) -> dict[str, Any]:
    """The models of a pipeline, by component."""
    denoiser, *others = CLASSES[pipeline_class]
    components = ["unet" if denoiser.startswith("UNet") else "transformer", *("text_encoder" for _ in others)]
    return dict(zip(components, map(build_model, (denoiser, *others)), strict=True))


@pytest.mark.parametrize(("pipeline_class", "_form", "make"), CASES, ids=[" ".join(case[:2]) for case in CASES])
def test_names_of_published_adapters(tmp_path: Path, pipeline_class: str, _form: str, make: Make) -> None:
    check(tmp_path, (-0.8,), pipeline_class, models_of(pipeline_class), lambda models, _: make(models))


def test_what_is_left_out_is_noted(tmp_path: Path) -> None:
    """All other tensors of the file are used."""
    models = models_of("WanPipeline")
    tensors = wan(models)
    choice = AdapterChoice(write(tmp_path / "x.safetensors", tensors))
    resolved = lora_files.resolve(choice, "WanPipeline", models)
    assert {*resolved.left_out} == {name for name in tensors if ".norm" in name}
    used = resolved.modules["transformer"].values()
    assert len(tensors) == 3 * len(used) + len(resolved.left_out)
    source = save_pipeline(tmp_path / "source", models | {"transformer_2": models["transformer"]}, "WanPipeline")
    notes = plan(source, options=ConvertOptions(("transformer", "transformer_2"), adapters=(choice,))).notes
    assert sum("x.safetensors: 3 tensors without effect, as diffusers leaves out such: " in note for note in notes) == 1
    assert sum("change nothing in transformer_2: diffusers loads them into it only on" in note for note in notes) == 1


MODULE = "transformer_blocks.0.attn.to_q"
GOOD = {f"lora_unet_double_blocks_0_img_attn_proj.{part}.weight": torch.ones(4, 4) for part in KOHYA}
NAMED = {
    f"transformer.{MODULE}.lora_A.weight": torch.ones(4, 128),
    f"transformer.{MODULE}.lora_B.weight": torch.ones(128, 4),
}
ALPHA_NAME = "lora_unet_double_blocks_0_img_attn_proj.alpha"
ODD: list[tuple[Tensors, str]] = [
    # diffusers would halve this for ever.
    (GOOD | {ALPHA_NAME: torch.tensor(-4.0)}, "alpha: is not a positive number"),
    (GOOD | {ALPHA_NAME: torch.tensor(torch.nan, dtype=torch.float64)}, "alpha: is not a positive number"),
    (GOOD | {ALPHA_NAME: torch.ones(4)}, "its shape is [4], not that of a number"),
    (GOOD | {ALPHA_NAME: torch.tensor(True)}, "its dtype BOOL is none of F32"),
    (GOOD | {ALPHA_NAME: torch.tensor(0)}, "alpha: is zero, which leaves the weights as they are"),
    (
        {name: tensor.half() * 30000 for name, tensor in GOOD.items()} | {ALPHA_NAME: torch.tensor(64.0)},
        "is too large for their dtype: transformer.transformer_blocks.0.attn.to_out.0.lora_A.weight",
    ),
    (NAMED | {f"transformer.{MODULE}.alpha": torch.tensor(0.0)}, "alpha: is zero"),
    # ComfyUI's factors for a text encoder that diffusers does not adapt.
    (
        GOOD | {name: tensor + 1 for name, tensor in unused_text_encoder().items()},
        "has 3 of 5 tensors that match nothing",
    ),
    (
        NAMED | {f"text_encoder_2.x.lora_{part}.weight": torch.ones(4, 4) for part in "AB"},
        "match no component: text_enc",
    ),
    (
        {name.replace("blocks_0", "blocks_99999"): tensor for name, tensor in GOOD.items()},
        "has names with a number that no model has: lora_unet_double_blocks_99999",
    ),
    (
        {f"lora_unet_x.{part}.weight": torch.ones(4, 4) for part in KOHYA},
        "FluxPipeline (Incompatible keys detected): lor",
    ),
    (
        {f"base_model.{part}.weight": torch.ones(4, 4) for part in PEFT},
        "lin.lora_A.weight is missing): base_model.lora_A",
    ),
]


@pytest.mark.parametrize(("tensors", "reason"), ODD, ids=[reason for _, reason in ODD])
def test_odd_adapters_are_refused(tmp_path: Path, tensors: Tensors, reason: str) -> None:
    choice = AdapterChoice(write(tmp_path / "x.safetensors", tensors))
    with pytest.raises(AdapterError, match=re.escape(reason)) as caught:
        lora_files.resolve(choice, "FluxPipeline", {"transformer": build_model("FluxTransformer2DModel")})
    assert caught.value.hint


def test_adapters_that_make_a_weight_overflow(tmp_path: Path) -> None:
    source = save_pipeline(tmp_path / "source", {"transformer": build_model("FluxTransformer2DModel")}, "FluxPipeline")
    choice = AdapterChoice(write(tmp_path / "x.safetensors", {name: tensor * 1e20 for name, tensor in NAMED.items()}))
    with pytest.raises(NonFiniteWeight, match="overflows bfloat16 once the adapters are added"):
        convert(source, tmp_path / "out", options=ConvertOptions(adapters=(choice,)))


def test_names_for_the_other_transformer_of_wan(tmp_path: Path) -> None:
    """diffusers loads into it only on request, and then by the names of the first."""
    model = build_model("WanTransformer3DModel")
    models = {"transformer": model, "transformer_2": model}
    file = write(tmp_path / "x.safetensors", prefixed(factors(model, paths_of(model)[:3]), "transformer_2"))
    with pytest.raises(AdapterError, match="names that match no component: transformer_2"):
        lora_files.resolve(AdapterChoice(file), "WanPipeline", models)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="is a folder") as caught:
        open_adapter(AdapterChoice(tmp_path))
    assert caught.value.hint == "Name a safetensors file."
    for name in ("b.safetensors", "a.safetensors", "c.json"):
        (tmp_path / name).touch()
    with pytest.raises(MissingInput, match="is a folder") as caught:
        open_adapter(AdapterChoice(tmp_path))
    assert caught.value.hint == "Name the file in it: a.safetensors; b.safetensors."
    for address in ("hf://someone/some-lora", "https://huggingface.co/someone/some-lora/x.safetensors=0.8"):
        with pytest.raises(UsageError, match="adapters are read from this machine") as refused:
            parse_choice(address)
        assert "hf download" in refused.value.hint
