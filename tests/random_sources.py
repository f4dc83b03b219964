"""Random pipelines: valid ones in every layout that diffusers reads, and ones with one planted defect.

A blueprint says what to build; hypothesis draws it, and shrinks it when a check fails. The models are real, tiny, and
built once; what varies is how their weights are laid out in files and what lies beside them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, convert, plan, verify
from converter.errors import InputError
from tests.tiny_models import save_model

#: By pipeline, the model components and their classes.
PIPELINES = {
    "StableDiffusionPipeline": {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
    },
    "PixArtAlphaPipeline": {
        "transformer": "PixArtTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "T5EncoderModel",
    },
    "WanPipeline": {
        "transformer": "WanTransformer3DModel",
        "transformer_2": "WanTransformer3DModel",
        "vae": "AutoencoderKLWan",
        "text_encoder": "T5EncoderModel",
    },
}
LIBRARIES = {"text_encoder": "transformers"}
SCHEDULER = {"_class_name": "DDIMScheduler", "steps_offset": 1, "clip_sample": False}
#: Files that no loader reads. They are left out.
HIDDEN = (".DS_Store", ".ipynb_checkpoints/config-checkpoint.json", "model.safetensors.incomplete", "__pycache__/x.pyc")
#: Weights of other frameworks, which are left out where there are safetensors.
FOREIGN = ("flax_model.msgpack", "tf_model.h5", "model.onnx", "model.gguf", "pytorch_model.bin")
#: Files of the root, and whether a release contains them.
ROOT_FILES = {"LICENSE.md": True, "NOTICE": True, "USE_POLICY.md": True, "README.md": False, ".gitattributes": False}
WRAPPERS = ("", "_orig_mod.", "module.", "module._orig_mod.")


@dataclass(frozen=True)
class Layout:
    """The weight files of one component."""

    shards: int = 1
    variant: str = ""
    is_legacy: bool = False
    """Whether the files of the variant have the names that older versions of diffusers gave them."""
    beside: str = ""
    """Another variant beside them; empty if there is none."""
    stray: str = ""
    """A file that is left out; empty if there is none."""


@dataclass(frozen=True)
class Defect:
    """What is wrong with one component."""

    component: str
    kind: str


@dataclass(frozen=True)
class Blueprint:
    """A source to build."""

    pipeline: str
    layouts: dict[str, Layout]
    variant: str | None
    """What is asked for with ``--variant``."""
    wrapper: str = ""
    """What all names of the denoiser's tensors begin with."""
    root_files: tuple[str, ...] = ()
    defect: Defect | None = None
    damage: Defect | None = None
    """What happens to the release of a valid source, to a component that was not converted."""

    @property
    def denoiser(self) -> str:
        """The component that is converted."""
        return next(iter(self.layouts))


def layouts(wanted: str | None) -> st.SearchStrategy[Layout]:
    """Layouts from which a loader that is asked for a variant chooses the first files that are written."""
    return st.builds(
        Layout,
        shards=st.integers(1, 3),
        variant=st.sampled_from(("", wanted)) if wanted else st.just(""),
        is_legacy=st.booleans(),
        beside=st.sampled_from(("", "ema")),
        stray=st.sampled_from(("", *HIDDEN, *FOREIGN)),
    )


@st.composite
def blueprints(draw: st.DrawFn) -> Blueprint:
    """Sources of which about half have a defect."""
    pipeline = draw(st.sampled_from(sorted(PIPELINES)))
    wanted = draw(st.sampled_from((None, "fp16")))
    components = PIPELINES[pipeline]
    chosen = {name: draw(layouts(wanted)) for name in components}
    if wanted and not any(layout.variant for layout in chosen.values()):
        name = draw(st.sampled_from(sorted(components)))
        chosen[name] = Layout(chosen[name].shards, wanted)
    kinds = st.sampled_from(sorted(DEFECTS))
    defect = draw(st.none() | st.builds(Defect, st.sampled_from(sorted(components)), kinds))
    damage = draw(st.builds(Defect, st.sampled_from(list(components)[1:]), kinds)) if defect is None else None
    return Blueprint(
        pipeline,
        chosen,
        wanted,
        draw(st.sampled_from(WRAPPERS)),
        tuple(draw(st.lists(st.sampled_from(sorted(ROOT_FILES)), unique=True))),
        defect,
        damage,
    )


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"word": 0})))


@cache
def _saved(class_name: str) -> tuple[str, dict[str, torch.Tensor]]:
    """The config and the tensors that a class saves."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), class_name)
        (weights,) = Path(folder).glob("*.safetensors")
        return Path(folder, "config.json").read_text(), load_file(weights)


def build(blueprint: Blueprint, folder: Path) -> Path:
    """Write a source."""
    components = PIPELINES[blueprint.pipeline]
    index: dict[str, Any] = {"_class_name": blueprint.pipeline, "_diffusers_version": "0.40.0"}
    for name, class_name in components.items():
        index[name] = [LIBRARIES.get(name, "diffusers"), class_name]
        wrapper = blueprint.wrapper if name == blueprint.denoiser else ""
        _write_component(folder / name, class_name, blueprint.layouts[name], wrapper)
    index["scheduler"] = ["diffusers", SCHEDULER["_class_name"]]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    index["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    _tokenizer().save_pretrained(folder / "tokenizer")
    if blueprint.pipeline == "StableDiffusionPipeline":
        index |= {name: [None, None] for name in ("safety_checker", "feature_extractor")}
    (folder / "model_index.json").write_text(json.dumps(index))
    for name in blueprint.root_files:
        (folder / name).write_text("some text\n")
    if blueprint.defect is not None:
        _plant(blueprint.defect, folder, blueprint.layouts[blueprint.defect.component].variant)
    return folder


def _write_component(folder: Path, class_name: str, layout: Layout, wrapper: str) -> None:
    folder.mkdir(parents=True)
    config, saved = _saved(class_name)
    (folder / "config.json").write_text(config)
    stem = "model" if "architectures" in json.loads(config) else "diffusion_pytorch_model"
    tensors = {wrapper + name: tensor for name, tensor in saved.items()}
    write_weights(folder, stem, tensors, layout.shards, layout.variant, is_legacy=layout.is_legacy)
    others = {"", layout.beside} - {layout.variant} if layout.variant else {layout.beside} - {""}
    for variant in others:
        write_weights(folder, stem, {"other": torch.ones(4)}, 1, variant)
    # A pickle beside safetensors is not opened, so that its content does not matter.
    if layout.stray:
        (folder / layout.stray).parent.mkdir(exist_ok=True)
        (folder / layout.stray).write_bytes(b"stray")


def write_weights(
    folder: Path,
    stem: str,
    tensors: dict[str, torch.Tensor],
    shards: int,
    variant: str,
    *,
    is_legacy: bool = False,
) -> None:
    """Write tensors under the names that diffusers and transformers give to a variant's files."""
    names = sorted(tensors)
    dotted = f".{variant}" if variant else ""
    if shards == 1:
        save_file(tensors, folder / f"{stem}{dotted}.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number in range(shards):
        count = f"-{number + 1:05}-of-{shards:05}"
        file = f"{stem}{count}{dotted}.safetensors" if is_legacy else f"{stem}{dotted}{count}.safetensors"
        part = names[number::shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = f"{stem}.safetensors{dotted}.index.json" if is_legacy else f"{stem}.safetensors.index{dotted}.json"
    size = sum(tensor.nbytes for tensor in tensors.values())
    (folder / index).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))


def _plant(defect: Defect, folder: Path, variant: str = "") -> None:
    """Damage the last weight file that the component's loader opens, or what belongs to it."""
    files = (file for file in (folder / defect.component).glob("*.safetensors") if "ema" not in file.name)
    DEFECTS[defect.kind](max(file for file in files if ("fp16" in file.name) == bool(variant)))


def _lose(file: Path) -> None:
    """Remove a file; without an index, also those that could take its place."""
    file.unlink()
    if "-of-" not in file.name:
        for other in file.parent.glob("*.safetensors"):
            other.unlink()


def _become(content: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(content)


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"
#: What is planted, by name: called with the last weight file of the component.
DEFECTS: dict[str, Callable[[Path], object]] = {
    "missing file": _lose,
    "missing folder": lambda file: shutil.rmtree(file.parent),
    "missing config": lambda file: (file.parent / "config.json").unlink(),
    "malformed config": lambda file: (file.parent / "config.json").write_text("{"),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "empty": _become(b""),
    "LFS pointer": _become(_POINTER),
    "HTML page": _become(b"<!DOCTYPE html><html><body>Sign in</body></html>"),
    "GGUF": _become(b"GGUF\x03\0\0\0" + b"\0" * 64),
    "zeros": _become(b"\0" * 4096),
}
#: A word that the message about a defect contains, besides the component's name.
WORDS = {"LFS pointer": "LFS", "HTML page": "HTML", "GGUF": "GGUF", "missing config": "config.json"}


def check(blueprint: Blueprint, folder: Path) -> None:
    """Build a source, convert it, and check the outcome.

    A valid source gives a release that stock diffusers loads, in which the other components have the source's numbers;
    a defect is named by the component and by what it is, and nothing is left of the conversion. So is a defect that a
    release gets later.
    """
    source, output = build(blueprint, folder / "source"), folder / "output"
    options = ConvertOptions(variant=blueprint.variant)
    if blueprint.defect is None:
        assert plan(source, options=options).plan.class_name
        convert(source, output, options=options)
        _check_release(blueprint, output)
        if blueprint.damage is not None:
            _check_damaged(blueprint.damage, output)
        return
    messages = {
        _refusal(lambda: plan(source, options=options)),
        _refusal(lambda: convert(source, output, options=options)),
    }
    assert len(messages) == 1, messages
    (message,) = messages
    assert blueprint.defect.component in message, message
    assert WORDS.get(blueprint.defect.kind, "") in message, message
    assert "onvert again" not in message, message
    assert sorted(path.name for path in folder.iterdir()) == ["source"]


def _refusal(function: Callable[[], object]) -> str:
    try:
        function()
    except InputError as error:
        return error.with_hint
    raise AssertionError("was not refused")


def _check_release(blueprint: Blueprint, output: Path) -> None:
    from diffusers import DiffusionPipeline

    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((*HIDDEN, *FOREIGN)) or "ema" in name or "fp16" in name]
    assert {name: name in names for name in blueprint.root_files} == {
        name: ROOT_FILES[name] for name in blueprint.root_files
    }
    report = verify(output)
    assert report.ok, [problem for problem in report.checks if not problem.ok]
    pipeline = DiffusionPipeline.from_pretrained(output)
    assert type(pipeline.components[blueprint.denoiser]).__name__ == PIPELINES[blueprint.pipeline][blueprint.denoiser]
    for name, class_name in PIPELINES[blueprint.pipeline].items():
        if name != blueprint.denoiser:
            assert _differing(pipeline.components[name].state_dict(), _saved(class_name)[1]) == []


def _check_damaged(damage: Defect, output: Path) -> None:
    """A release without a manifest, as others make it, in which a component is damaged: verify names it."""
    (output / "lensconv_manifest.json").unlink()
    _plant(damage, output)
    (problem,) = [check.detail for check in verify(output).checks if not check.ok]
    assert damage.component in problem, problem
    assert WORDS.get(damage.kind, "") in problem, problem


def _differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
