"""Files of LoRA adapters: what is read, what their names mean, and what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from converter.checkpoint.reader import TensorReader
from converter.conversion.adapters.choice import MAXIMUM_SCALE, AdapterChoice, parse_choice
from converter.conversion.adapters.file import open_adapter
from converter.conversion.adapters.resolving import resolve_adapter
from converter.conversion.adapters.scaling import Scaling
from converter.conversion.adapters.spooling import spool_factors
from converter.errors import AdapterError, LensconvError, MalformedCheckpoint, UnsupportedCheckpoint, UsageError
from tests import lora_files
from tests.lora_files import Tensors, alphas_of, down_and_up, factors, flux_sizes, of_authors, prefixed, write
from tests.tiny_models import build_model

MODULE = "transformer_blocks.0.attn.to_q"
WEIGHTS = f"transformer.{MODULE}.lora_{{}}.weight"


@pytest.mark.parametrize(
    ("text", "file", "scale"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors=0.8", "a.safetensors", 0.8),
        ("a.safetensors=-.5e0", "a.safetensors", -0.5),
        ("step=100.safetensors", "step=100.safetensors", 1.0),
        ("step=100.safetensors=2", "step=100.safetensors", 2.0),
        ("a/b=c", "a/b=c", 1.0),
    ],
)
def test_choices(text: str, file: str, scale: float) -> None:
    assert parse_choice(text) == AdapterChoice(Path(file), scale)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no file"),
        ("=0.5", "names no file"),
        ("a.safetensors=", "nothing is not a number"),
        ("a.safetensors=half", "half is not a number"),
        ("a.safetensors=1_0", "1_0 is not a number"),
        ("a.safetensors=0", "leaves the weights as they are"),
        ("a.safetensors=nan", "is not a finite number"),
        ("a.safetensors=-inf", "is not a finite number"),
        ("a.safetensors=1e999", "is not a finite number"),
        ("a.safetensors=101", "is beyond 100"),
    ],
)
def test_choices_that_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=re.escape(reason)):
        parse_choice(text)


@given(st.floats(-MAXIMUM_SCALE, MAXIMUM_SCALE).filter(bool))
def test_every_scale_survives_the_command_line(scale: float) -> None:
    assert parse_choice(f"a=b.safetensors={scale!r}") == AdapterChoice(Path("a=b.safetensors"), scale)


def tensors_of_flux(**changes: Any) -> Tensors:
    tensors = {WEIGHTS.format("A"): torch.ones(4, 128), WEIGHTS.format("B"): torch.ones(128, 4)}
    return {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}


def test_a_file_is_read_like_safetensors_reads_it(tmp_path: Path) -> None:
    model = build_model("FluxTransformer2DModel")
    file = write(tmp_path / "x.safetensors", prefixed(factors(model, lora_files.paths_of(model)), "transformer"))
    adapter = open_adapter(AdapterChoice(file))
    # diffusers counts ranks in this order, and the first of several wins.
    assert [*adapter.tensors] == [*load_file(file)]
    assert adapter.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    resolved = lora_files.resolve(AdapterChoice(file, 0.5), "FluxPipeline", {"transformer": model})
    # Nothing was changed, so nothing is held.
    assert resolved.held_bytes == 0
    assert resolved.file.identity == [adapter.sha256, 0.5, ""]
    assert resolved.describe().to_dict() == {"name": "x.safetensors", "sha256": adapter.sha256, "scale": 0.5}


FILES: list[tuple[Tensors, str]] = [
    ({"x": torch.ones(3)}, "is not a LoRA adapter: x"),
    ({"transformer.x.lokr_w1": torch.ones(3, 3)}, "LoKr is not supported"),
    ({"lora_unet_x.hada_w1_a": torch.ones(3, 3)}, "LoHa is not supported"),
    ({"lora_unet_x.oft_blocks": torch.ones(3, 3)}, "OFT is not supported"),
    (tensors_of_flux(**{f"transformer.{MODULE}.lora_magnitude_vector": torch.ones(128)}), "DoRA is not supported"),
    (tensors_of_flux(**{"lora_unet_x.dora_scale": torch.ones(128)}), "DoRA is not supported"),
    (tensors_of_flux(**{"lora_unet_x.lora_mid.weight": torch.ones(4, 4, 3, 3)}), "LoCon with a middle factor"),
    (tensors_of_flux(**{WEIGHTS.format("A"): torch.full((4, 128), torch.nan)}), "contains NaN or infinity"),
    (tensors_of_flux(**{WEIGHTS.format("B"): torch.full((128, 4), torch.inf).half()}), "contains NaN or infinity"),
    (tensors_of_flux(**{WEIGHTS.format("A"): torch.ones(4, 128).double()}), "its dtype F64 is none of F32, F16, BF16"),
    (tensors_of_flux(**{WEIGHTS.format("A"): torch.ones(0, 128)}), "has no numbers"),
]


@pytest.mark.parametrize(("tensors", "reason"), FILES, ids=[reason for _, reason in FILES])
def test_files_that_are_refused(tmp_path: Path, tensors: Tensors, reason: str) -> None:
    with pytest.raises(AdapterError, match=re.escape(reason)):
        open_adapter(AdapterChoice(write(tmp_path / "x.safetensors", tensors)))


def test_files_that_break_their_format(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    header = b'{"a.lora_A.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    twice = header[:-1] + b"," + header[1:]
    for content, error in (
        (b"", MalformedCheckpoint),
        (b"PK\x03\x04" + b"0" * 90, MalformedCheckpoint),
        (len(twice).to_bytes(8, "little") + twice + b"0000", MalformedCheckpoint),
        (b"\x02" + b"\0" * 7 + b"{}", AdapterError),
    ):
        file.write_bytes(content)
        with pytest.raises(error):
            open_adapter(AdapterChoice(file))
    pickled = tmp_path / "x.bin"
    pickled.write_bytes(b"")
    with pytest.raises(UnsupportedCheckpoint, match="pickle"):
        open_adapter(AdapterChoice(pickled))


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace(old, new): tensor for key, tensor in tensors.items()}


MISFITS: list[tuple[Tensors, str]] = [
    (
        renamed("to_q", "to_quarry")(tensors_of_flux()),
        "1 of 1 modules that transformer lacks: transformer_blocks.0.attn",
    ),
    (renamed("blocks.0", "blocks.7")(tensors_of_flux()), "Nearest: transformer_blocks."),
    (renamed("transformer.", "diffusion_model.")(tensors_of_flux()), "match no component: diffusion_model.transformer"),
    (renamed("transformer.", "")(tensors_of_flux()), "match no component"),
    (without(WEIGHTS.format("A"))(tensors_of_flux()), f"has no lora_A for transformer.{MODULE}"),
    (tensors_of_flux(**{WEIGHTS.format("A"): torch.ones(3, 128)}), "disagree: A is [3, 128], B is [128, 4]"),
    (tensors_of_flux(**{WEIGHTS.format("A"): torch.ones(4, 64)}), "do not fit the weight [128, 128]"),
    (tensors_of_flux(**{WEIGHTS.format("B"): torch.ones(256, 4)}), "do not fit the weight [128, 128]"),
    (tensors_of_flux(**{WEIGHTS.format("A"): torch.ones(4, 128, 1, 1)}), "do not fit the weight [128, 128]"),
    (tensors_of_flux(**{"transformer.norm_q.weight": torch.ones(128)}), "is not a factor or a bias of a LoRA"),
    (renamed(MODULE, "transformer_blocks.0.norm1.norm")(tensors_of_flux()), "is a LayerNorm; only Linear"),
    (tensors_of_flux(**{f"transformer.{MODULE}.lora_B.bias": torch.ones(3)}), "the bias [3] does not fit"),
    (down_and_up(tensors_of_flux()) | {"stray.lora_down.weight": torch.ones(4, 4)}, "match nothing: stray.lora_down"),
]


@pytest.mark.parametrize(("tensors", "reason"), MISFITS, ids=[reason for _, reason in MISFITS])
def test_adapters_that_do_not_fit(tmp_path: Path, tensors: Tensors, reason: str) -> None:
    file = write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(AdapterError) as caught:
        lora_files.resolve(AdapterChoice(file), "FluxPipeline", {"transformer": build_model("FluxTransformer2DModel")})
    assert reason in caught.value.with_hint


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"r": 8}, "its config gives transformer.transformer_blocks.0.attn.to_q rank 8, its factors have 4"),
        ({"r": 4, "use_dora": True}, "use_dora = True, which is not supported"),
        ({"r": 4, "init_lora_weights": "pissa"}, "init_lora_weights = pissa"),
        ({"r": 4, "lora_alpha": float("nan")}, "an alpha that is zero or not a finite number"),
        ({"r": 4, "lora_alpha": 0}, "an alpha that is zero or not a finite number"),
        ({"r": 4, "lora_alpha": None}, "an alpha that is zero or not a finite number"),
        ({"r": 0}, "a rank that is not a positive integer"),
        ({"r": 4, "rank_pattern": {"(a+)+": 4}}, "a pattern that is not supported"),
        ({"r": 4, "modules_to_save": ["norm"]}, "modules_to_save"),
        ({"r": 4, "lora_bias": True}, "has biases, but none for"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    content = json.dumps({f"transformer.{key}": value for key, value in config.items()})
    file = write(tmp_path / "x.safetensors", tensors_of_flux(), {"lora_adapter_metadata": content})
    with pytest.raises(AdapterError, match=re.escape(reason)):
        lora_files.resolve(AdapterChoice(file), "FluxPipeline", {"transformer": build_model("FluxTransformer2DModel")})


def test_pipelines_that_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "x.safetensors", tensors_of_flux())
    models = {"transformer": build_model("FluxTransformer2DModel")}
    for pipeline_class in ("PixArtSigmaPipeline", "NoPipeline", "", "FluxTransformer2DModel"):
        with pytest.raises(UnsupportedCheckpoint, match="diffusers"):
            lora_files.resolve(AdapterChoice(file), pipeline_class, models)


def test_components_that_are_not_converted(tmp_path: Path) -> None:
    models = {"transformer": build_model("FluxTransformer2DModel")}
    others = {f"text_encoder.x.lora_{part}.weight": torch.ones(4, 4) for part in "AB"}
    file = write(tmp_path / "x.safetensors", tensors_of_flux(**others))
    resolved = lora_files.resolve(AdapterChoice(file), "FluxPipeline", models)
    assert {name: sorted(names) for name, names in resolved.others.items()} == {"text_encoder": sorted(others)}
    file = write(tmp_path / "y.safetensors", others)
    with pytest.raises(AdapterError, match="has tensors for text_encoder only, and what is converted is transformer"):
        lora_files.resolve(AdapterChoice(file), "FluxPipeline", models)
    with pytest.raises(AdapterError, match="has tensors for transformer only, and what is converted is text_encoder"):
        resolve_adapter(
            open_adapter(AdapterChoice(file)),
            "LensPipeline",
            lora_files.components_of({"text_encoder": models["transformer"]}),
        )


def test_lens(tmp_path: Path) -> None:
    model = lora_files.build_lens()
    paths = lora_files.paths_of(model)[:3]
    file = write(tmp_path / "x.safetensors", down_and_up(factors(model, paths)) | alphas_of(paths, 2.0))
    resolved = lora_files.resolve(AdapterChoice(file), "LensPipeline", {"transformer": model})
    assert [*resolved.modules["transformer"]] == sorted(paths)
    # Alphas are multiplied into the second factors, which are held; the first stay in the file.
    modules = resolved.modules["transformer"].values()
    assert resolved.held_bytes == sum(module.up.shape[0] * module.up.shape[1] * 4 for module in modules)
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    again = lora_files.resolve(AdapterChoice(file), "LensPipeline", {"transformer": model})
    assert again.file.identity[2] == again.describe().config_sha256 != ""
    file = write(
        tmp_path / "y.safetensors", {"blocks.lora_A.weight": torch.ones(4, 4), "blocks.lora_B.weight": torch.ones(4, 4)}
    )
    with pytest.raises(AdapterError, match="modules that the model lacks"):
        lora_files.resolve(AdapterChoice(file), "LensPipeline", {"transformer": model})


def test_spooled_factors(tmp_path: Path) -> None:
    model = build_model("FluxTransformer2DModel")
    sizes = {name: size for name, size in flux_sizes(128, 2, 2).items() if "linear1" not in name}
    file = write(tmp_path / "x.safetensors", of_authors(sizes, "kohya"))
    held = lora_files.resolve(AdapterChoice(file), "FluxPipeline", {"transformer": model})
    stored = spool_factors(held, tmp_path / "spool")
    assert held.held_bytes > 0 == stored.held_bytes
    assert spool_factors(stored, tmp_path / "other") is stored
    # Planning happens in another process.
    stored = pickle.loads(pickle.dumps(stored))  # noqa: S301
    with TensorReader() as reader:
        for path, module in held.modules["transformer"].items():
            other = stored.modules["transformer"][path]
            assert module.scaling == other.scaling
            assert torch.equal(module.down.load(reader), other.down.load(reader))
            assert torch.equal(module.up.load(reader), other.up.load(reader))


@pytest.mark.parametrize("form", ["kohya", "fal"])
def test_published_sizes_of_flux(tmp_path: Path, form: str) -> None:
    """Converters know this model's sizes and split what its authors joined; the factors that they make fit."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    sizes = flux_sizes(model.inner_dim, 19, 38)
    if form == "fal":
        sizes["final_layer.linear"] = model.inner_dim, 64
    file = write(tmp_path / "x.safetensors", of_authors(sizes, form, rank=1))
    resolved = lora_files.resolve(AdapterChoice(file), "FluxPipeline", {"transformer": model})
    blocks = [path for path in lora_files.paths_of(model, (torch.nn.Linear,)) if "blocks" in path]
    assert {*blocks} <= {*resolved.modules["transformer"]}


PATTERN = st.from_regex(r"\A\^?[ab.]{1,4}(\.\*)?\Z")


@given(st.lists(PATTERN, max_size=4, unique=True), st.from_regex(r"\A[ab](\.[ab]){0,4}\Z"))
def test_patterns_match_as_in_peft(patterns: list[str], path: str) -> None:
    other: Any = pytest.importorskip("peft.utils.other")
    values = {pattern: number + 2 for number, pattern in enumerate(patterns)}
    scaling = Scaling.parse({"r": 1, "rank_pattern": values})
    assert scaling.rank_of(path) == values.get(other.get_pattern_key(patterns, path), 1)


@given(st.dictionaries(st.text(max_size=12), st.one_of(st.none(), st.text(), st.integers(), st.lists(st.integers()))))
def test_hostile_configs(config: dict[str, Any]) -> None:
    try:
        scaling = Scaling.parse(config)
    except ValueError:
        return
    assert scaling.factor("a.b", 1.0) == scaling.alpha / scaling.rank


#: Hides a package from what looks for it, and from what imports it.
HIDING = """
import importlib.metadata, importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.split(".")[0] == "peft" else found(name, *more)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "peft":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Finder())
"""


def test_peft_is_not_needed(tmp_path: Path) -> None:
    models = {"transformer": build_model("FluxTransformer2DModel")}
    sizes = {name: size for name, size in flux_sizes(128, 2, 2).items() if "linear1" not in name}
    file = write(tmp_path / "x.safetensors", of_authors(sizes, "kohya"))
    code = f"""{HIDING}
from pathlib import Path
from converter.conversion.adapters.choice import AdapterChoice
from tests import lora_files
from tests.tiny_models import build_model
models = {{"transformer": build_model("FluxTransformer2DModel")}}
found = lora_files.resolve(AdapterChoice(Path({str(file)!r})), "FluxPipeline", models).modules["transformer"]
assert "peft" not in sys.modules
print({{path: module.scaling for path, module in sorted(found.items())}})
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = lora_files.resolve(AdapterChoice(file), "FluxPipeline", models).modules["transformer"]
    assert result.stdout.strip() == str({path: module.scaling for path, module in sorted(found.items())})


def test_errors_are_of_lensconv() -> None:
    assert issubclass(AdapterError, LensconvError)
    assert AdapterError.exit_code == 2
