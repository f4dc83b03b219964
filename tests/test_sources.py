"""The table of docs/sources.md: each row has a case here that builds such a source and gives it to the commands."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT, Lensconv, edit_json
from tests.tiny_models import WEIGHTS, into_cache, make_pipeline, save_model

#: A rule that lets SDNQ plan in this process, which is quicker than waiting for another one.
IN_PROCESS = ("--set", "*.attn.to_out.0=int8")
STEM = "diffusion_pytorch_model"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 8441024\n"


def table_rows() -> dict[str, str]:
    """The outcome of each row of the page, by its name."""
    text = (ROOT / "docs" / "sources.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \| .*\|$", text, flags=re.MULTILINE)
    return {name: outcome for name, outcome in rows if name not in ("source", "---")}


@dataclass(frozen=True)
class Given:
    """What a case gives to the commands, and what must come of it."""

    source: Path | str
    text: str = ""
    """Part of a note, or of the message and the hint of the error."""
    options: tuple[str, ...] = ()
    brings: tuple[str, ...] = ()
    """Files that the result must have."""
    leaves: tuple[str, ...] = ()
    """Files that it must not have."""


Build = Callable[[Path], Given]


def write(file: Path, content: bytes | str = b"x") -> Path:
    """Write a file in place of another, with the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def add_component(source: Path, name: str, library: str, class_name: str, **files: str) -> Path:
    """Add an entry to the index, and a folder with these files."""
    edit_json(source / "model_index.json", **{name: [library, class_name]})
    for file, content in files.items():
        write(source / name / file.replace("__", "."), content)
    return source / name


def save_text_encoder(source: Path, name: str, *, loaded_as: str) -> Path:
    """Add a text encoder of one class, which the index names as another."""
    edit_json(source / "model_index.json", text_encoder=["transformers", loaded_as])
    return save_model(source / "text_encoder", name)


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a folder."""
    found = load_file(folder / WEIGHTS)
    change(found)
    save_file(found, folder / WEIGHTS, metadata={"format": "pt"})


def split(folder: Path, form: str = "{stem}{number}.safetensors", index: str = "{stem}.safetensors.index.json") -> None:
    """Split the weights of a folder into two shards with names of this form, and write their index."""
    file = folder / WEIGHTS
    tensors = load_file(file)
    file.unlink()
    weight_map: dict[str, str] = {}
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        shard = form.format(stem=STEM, number=f"-{number:05}-of-00002")
        save_file({name: tensors[name] for name in names}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, shard)
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    write(folder / index.format(stem=STEM), json.dumps(content))


def build(change: Callable[[Path], object], text: str = "", *options: str, **files: tuple[str, ...]) -> Build:
    """Change the pipeline, and give it."""

    def case(source: Path) -> Given:
        change(source)
        return Given(source, text, options, **files)

    return case


def component(change: Callable[[Path], object], text: str = "", *options: str) -> Build:
    """Change the transformer, and give its folder."""

    def case(source: Path) -> Given:
        change(source / "transformer")
        return Given(source / "transformer", text, options)

    return case


def instead(content: bytes | str, text: str) -> Build:
    """Something else is in place of the weights."""
    return component(lambda folder: write(folder / WEIGHTS, content), text)


def besides(*names: str, text: str = "") -> Build:
    """Files that are left out."""
    return build(lambda source: [write(source / name) for name in names], text, leaves=names)


def tensors(change: Callable[[dict[str, torch.Tensor]], object], text: str = "") -> Build:
    """Change the tensors of the transformer."""
    return component(lambda folder: change_tensors(folder, change), text)


def prefixed(prefix: str) -> Build:
    """The names of all tensors have a prefix."""
    return component(lambda folder: put_before_names(folder, prefix), prefix)


def put_before_names(folder: Path, prefix: str) -> None:
    change_tensors(folder, lambda found: [found.update({prefix + name: found.pop(name)}) for name in list(found)])


def cast(dtype: torch.dtype, text: str = "") -> Build:
    """The tensors have another dtype."""
    return tensors(lambda found: found.update({name: tensor.to(dtype) for name, tensor in found.items()}), text)


def model(class_name: str, name: str, text: str) -> Build:
    """A model of transformers with a further tensor."""

    def case(source: Path) -> Given:
        folder = save_model(source / "model", class_name)
        found = load_file(folder / "model.safetensors")
        save_file({**found, name: torch.ones(4)}, folder / "model.safetensors", metadata={"format": "pt"})
        return Given(folder, text)

    return case


def one_file(source: Path) -> Given:
    return Given(source / "transformer" / WEIGHTS)


def one_shard(source: Path) -> Given:
    split(source / "transformer")
    return Given(source / "transformer" / f"{STEM}-00002-of-00002.safetensors", "is one of several shards")


def unnamed(source: Path) -> Given:
    (source / "transformer" / "config.json").unlink()
    return Given(source / "transformer", "assumed from microsoft/Lens")


def nameless_model(source: Path) -> Given:
    folder = save_model(source / "model", "AutoencoderKL")
    (folder / "config.json").unlink()
    return Given(folder, "config.json")


def without(*names: str) -> Callable[[Path], None]:
    """Remove files or folders."""

    def remove(source: Path) -> None:
        for path in (source / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def snapshot(source: Path) -> Given:
    return Given(into_cache(source), brings=("vae/config.json", "tokenizer/nested/vocabulary.txt"))


def second_denoiser(source: Path) -> None:
    add_component(source, "transformer_2", "diffusers", "LensTransformer2DModel")
    shutil.copytree(source / "transformer", source / "transformer_2", dirs_exist_ok=True)


def further_models(source: Path) -> None:
    add_component(source, "controlnet", "diffusers", "MultiControlNetModel")
    for name in ("controlnet", "controlnet_1"):
        shutil.copytree(source / "vae", source / name, dirs_exist_ok=True)


def variant(*variants: str, form: str = "", index: str = "", keeps_plain: bool = False) -> Callable[[Path], None]:
    """Weights of variants in a folder, in one file or in shards with names of a form."""

    def change(folder: Path) -> None:
        if form:
            split(folder, form, index)
            return
        for name in variants:
            shutil.copy(folder / WEIGHTS, folder / f"{STEM}.{name}.safetensors")
        if not keeps_plain:
            (folder / WEIGHTS).unlink()

    return change


def two_files(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "a.safetensors")
    (folder / WEIGHTS).rename(folder / "b.safetensors")


def lost_shard(folder: Path) -> None:
    split(folder)
    (folder / f"{STEM}-00002-of-00002.safetensors").unlink()


def stale_index(folder: Path) -> None:
    split(folder)
    index = folder / f"{STEM}.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={**weight_map, "another": next(iter(weight_map.values()))})


def both(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "kept")
    split(folder)
    (folder / "kept").rename(folder / WEIGHTS)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def pickled(source: Path) -> None:
    torch.save(load_file(source / "vae" / WEIGHTS), source / "vae" / f"{STEM}.bin")
    (source / "vae" / WEIGHTS).unlink()


def with_header(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change the header of the weights."""

    def edit(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        new = change(content[8:end])
        (folder / WEIGHTS).write_bytes(len(new).to_bytes(8, "little") + new + content[end:])

    return edit


def archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as written:
        written.writestr("model/config.json", "{}")
    return stream.getvalue()


def quantized(method: str) -> Build:
    return component(
        lambda folder: edit_json(folder / "config.json", quantization_config={"quant_method": method}),
        f"already quantized ({method})",
    )


def adapter(source: Path) -> Given:
    (source / "lora").mkdir()
    save_file({"layer.lora_A.weight": torch.ones(2, 2)}, source / "lora" / "pytorch_lora_weights.safetensors")
    return Given(source / "lora", "is of a LoRA adapter")


def renamed(name: str) -> Callable[[Path], object]:
    """Rename the weights of a folder."""
    return lambda folder: (folder / WEIGHTS).rename(folder / name)


def with_code(source: Path) -> None:
    edit_json(source / "model_index.json", _class_name=["pipeline_lens", "LensPipeline"])
    for name in CODE:
        write(source / name, "raise SystemExit('was run')")


def without_code(source: Path) -> None:
    """Name code in all ways in which loaders find it, and such that is elsewhere."""
    edit_json(
        source / "model_index.json", _class_name=["pipeline_lens", "LensPipeline"], vae=["my_vae", "AutoencoderKL"]
    )
    add_component(source, "safety_checker", "stable_diffusion", "SafetyProcessor", config__json="{}")
    edit_json(source / "transformer" / "config.json", auto_map=dict(enumerate(CODE_NAMES)))
    write(source / "tokenizer" / "config.json", '{"auto_map": [0]}')


#: Values of ``auto_map``: in the same folder, in another repo, and such that no file can have.
CODE_NAMES = (
    *("modeling_lens.Lens", "owner/name--code.Lens", "name--code.Lens"),
    *("../secret.Lens", "secret/x.Lens", "Lens", 5, ".Lens"),
)
TERMS = ("LICENSE", "NOTICE.txt", "USE_POLICY.md", "Model_License", "transformer/LICENSE.md", "THIRD-PARTY-NOTICES.md")
HIDDEN = (
    *(".DS_Store", "tokenizer/.DS_Store", "vae/.ipynb_checkpoints/a.json", ".git/HEAD", ".gitattributes"),
    *(".cache/huggingface/download/x.lock", "transformer/._notes.json"),
)
CACHES = (
    "tokenizer/__pycache__/a.pyc",
    "vae/x.incomplete",
    "vae/x.lock",
    "transformer/Thumbs.db",
    "vae/x.part",
    "vae/config.json~",
)
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
CODE = ("pipeline_lens.py", "parts/model.py", "transformer/modeling_lens.py")
FOREIGN = (
    "vae/flax_model.msgpack",
    "vae/model.onnx",
    "vae/tf_model.h5",
    f"vae/{STEM}.bin",
    "transformer/a.ckpt",
    "vae/openvino_model.xml",
)
QKV = "transformer_blocks.0.attn.img_qkv.weight"
VARIANT_INDEX = "{stem}.safetensors.index.fp16.json"

CASES: dict[str, Build] = {
    # Layouts
    "a pipeline repo": build(lambda _: None, brings=("model_index.json", f"vae/{WEIGHTS}", f"transformer/{WEIGHTS}")),
    "a component folder": component(lambda _: None),
    "one `.safetensors` file": one_file,
    "one of several shards, an index or a config": one_shard,
    "a Lens transformer without `config.json`": unnamed,
    "another model without `config.json`": nameless_model,
    "a pipeline without `model_index.json`": build(
        without("model_index.json", "vae"), "its folder transformer contains weights Give that folder"
    ),
    "a pipeline without a denoiser": build(
        lambda source: write(source / "model_index.json", '{"vae": ["diffusers", "AutoencoderKL"]}'), "--component: vae"
    ),
    "a snapshot in the cache of the Hub": snapshot,
    "a missing folder that `model_index.json` names": build(without("vae"), "no such folder"),
    "a component that is `[null, null]`": besides("safety_checker/config.json"),
    "a folder that `model_index.json` does not name": besides("old/model.safetensors", text="old/model.safetensors"),
    "two denoisers": build(second_denoiser, "transformer_2", brings=(f"transformer_2/{WEIGHTS}",)),
    "a pipeline inside the pipeline": build(
        lambda source: add_component(source, "prior", "diffusers", "DiffusionPipeline", model_index__json="{}", a="x"),
        "prior: is copied and not examined",
        brings=("prior/model_index.json", "prior/a"),
    ),
    "a text encoder for which `model_index.json` names another class than its config": build(
        lambda source: save_text_encoder(source, "LlamaForCausalLM", loaded_as="LlamaModel"),
        "because LlamaModel does not save them: lm_head.weight",
        *("--component", "transformer", "--component", "text_encoder"),
        brings=("text_encoder/model.safetensors",),
    ),
    "an ONNX component": build(
        lambda source: add_component(source, "unet_2", "diffusers", "OnnxRuntimeModel", model__onnx="x"),
        "unet_2: is copied and not examined",
        brings=("unet_2/model.onnx",),
    ),
    "several ControlNets or adapters": build(further_models, brings=(f"controlnet_1/{WEIGHTS}",)),
    "a link to a file outside the source": build(
        lambda s: (s / "vae" / "secret").symlink_to("/etc/passwd"), "is a link to"
    ),
    "a link to a folder in a component": build(lambda s: (s / "vae" / "more").symlink_to("."), "is a link to a folder"),
    "a pipe or a device in a component": build(
        lambda source: os.mkfifo(source / "vae" / "pipe"), "is not a regular file"
    ),
    # Names of weight files
    "shards with an index": component(split),
    "one weight file of another name": component(renamed("lens.safetensors")),
    "several weight files without an index": component(two_files, "and no index Give one of the files."),
    "a weight file and an index": component(both, "loaders disagree on which one counts"),
    "an index that names a missing shard": component(lost_shard, "no such file, though"),
    "an index that disagrees with its shards": component(stale_index, "tensor another"),
    "plain weights beside a variant": component(variant("fp16", keeps_plain=True), f"{STEM}.fp16.safetensors"),
    "the variant that `--variant` names": component(variant("fp16", keeps_plain=True), WEIGHTS, "--variant", "fp16"),
    "a variant without plain weights": component(variant("fp16")),
    "several variants without plain weights": component(variant("fp16", "ema"), "ema, fp16"),
    "a variant that nothing in the source has": component(variant("ema", keeps_plain=True), "ema", "--variant", "fp16"),
    "shards of a variant": component(variant(form="{stem}.fp16{number}.safetensors", index=VARIANT_INDEX)),
    "shards of a variant in the old style": component(
        variant(form="{stem}{number}.fp16.safetensors", index=VARIANT_INDEX)
    ),
    "another component in a variant": build(
        lambda source: variant("fp16")(source / "vae"), "vae: has only the variant fp16", brings=(f"vae/{WEIGHTS}",)
    ),
    # Components that stay as they are
    "another component without weights": build(without(f"vae/{WEIGHTS}"), f"contains no {WEIGHTS}"),
    "another component without `config.json`": build(without("vae/config.json"), "vae/config.json: no such file"),
    "another component with a weight file that is cut short": build(
        lambda source: cut(source / "vae" / WEIGHTS), "is cut short"
    ),
    "another component with a Git LFS pointer": build(
        lambda source: write(source / "vae" / WEIGHTS, POINTER), f"vae/{WEIGHTS}"
    ),
    "another component with pickled weights (`.bin`)": build(pickled, "not opened", brings=(f"vae/{STEM}.bin",)),
    "an adapter beside another model": build(
        lambda source: [write(source / "vae" / name) for name in ADAPTER],
        brings=(f"vae/{ADAPTER[1]}",),
    ),
    "other files of another model": build(
        lambda source: write(source / "vae" / "notes" / "a.txt"), brings=("vae/notes/a.txt",)
    ),
    "tokenizers, schedulers and processors": build(
        lambda source: write(source / "tokenizer" / "vocabulary.bin"), brings=("tokenizer/vocabulary.bin",)
    ),
    # Kinds of weight files
    "weights in F16 or BF16": cast(torch.bfloat16, "rounded weights"),
    "weights in F64": cast(torch.float64),
    "weights in FP8": cast(torch.float8_e4m3fn, "already quantized"),
    "weights that SDNQ quantized": quantized("sdnq"),
    "weights that another tool quantized": quantized("bitsandbytes"),
    "pickles: `.bin`, `.pt`, `.pth`, `.ckpt`, `.pkl`": component(renamed(f"{STEM}.bin"), "may contain a pickle"),
    "GGUF": component(renamed("lens.gguf"), "lens.gguf"),
    "GGUF named `.safetensors`": instead(b"GGUF\3" + bytes(600), "is a GGUF file"),
    "a Git LFS pointer": instead(POINTER, "is a Git LFS pointer"),
    "a web page in place of weights": instead("<!DOCTYPE html><html></html>", "is an HTML page"),
    "an archive in place of weights": instead(archive(), "is a zip archive"),
    "a pickle named `.safetensors`": instead(pickle.dumps({"a": list(range(99))}), "is a pickle"),
    "an empty weight file": instead("", "is empty"),
    "a weight file that is cut short": component(lambda folder: cut(folder / WEIGHTS), "is cut short"),
    "a weight file without tensors": instead((2).to_bytes(8, "little") + b"{}", "contains no tensors"),
    "a header after whitespace": component(with_header(lambda text: b" \n" + text)),
    "metadata that is `null`": component(
        with_header(lambda text: text.replace(b'"__metadata__":{"format":"pt"}', b'"__metadata__":null'))
    ),
    "a LoRA adapter, alone or in a model": adapter,
    "an adapter beside the converted model": besides(*(f"transformer/{name}" for name in ADAPTER), text=ADAPTER[0]),
    "weights for other libraries": besides(*FOREIGN, text="vae/flax_model.msgpack"),
    "other safetensors files of a component": besides(
        "transformer/old.safetensors", text="transformer/old.safetensors"
    ),
    "a checkpoint beside the components": besides("lens-fp8.safetensors", text="lens-fp8.safetensors"),
    # Names of tensors
    "`_orig_mod.` before all names": prefixed("_orig_mod."),
    "`module.` before all names": prefixed("module."),
    "`model.diffusion_model.` before all names": prefixed("model.diffusion_model."),
    "one of these prefixes in a component that is not converted": build(
        lambda source: put_before_names(source / "vae", "module."), "vae: the names of all tensors begin with module."
    ),
    "`_orig_mod.` inside names": tensors(
        lambda found: found.update({QKV.replace(".attn", "._orig_mod.attn"): found.pop(QKV)}), "_orig_mod."
    ),
    "`position_ids` of CLIP": model("CLIPTextModel", "text_model.embeddings.position_ids", "position_ids"),
    "`rotary_emb.inv_freq` of Llama": model(
        "LlamaForCausalLM", "model.layers.0.self_attn.rotary_emb.inv_freq", "inv_freq"
    ),
    "a tensor that the class does not have": tensors(lambda found: found.update(another=torch.ones(4)), "another"),
    "a tensor that is missing": tensors(lambda found: found.pop(QKV), QKV),
    "a tensor of another shape": tensors(lambda found: found.update({QKV: torch.ones(4, 4)}), QKV),
    # Other files
    "license, notice and use policy": build(lambda source: [write(source / name) for name in TERMS], brings=TERMS),
    "code": build(
        with_code,
        "code is copied, not run",
        brings=CODE,
    ),
    "code that is missing": build(
        without_code,
        "code that does not exist: pipeline_lens.py; transformer/modeling_lens.py; vae/my_vae.py",
    ),
    "other files beside the components": besides("preview.png", "samples/1.png", "requirements.txt"),
    "`README.md`": besides("README.md", "vae/README.md"),
    "hidden files and folders": besides(*HIDDEN),
    "caches, locks, backups and unfinished downloads": besides(*CACHES),
    "names with a backslash, or not in UTF-8": besides(
        os.fsdecode(b"tokenizer/gr\xfc\xdfe.txt"), "tokenizer/nested\\a.txt", "nested\\a.py"
    ),
}


def test_every_row_has_a_case_and_every_case_a_row() -> None:
    assert list(CASES) == list(table_rows())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with a Lens transformer."""
    return make_pipeline(tmp_path_factory.mktemp("sources") / "pipeline")


@pytest.mark.parametrize("name", table_rows())
def test_what_the_page_says_happens(name: str, pipeline: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    outcome, out = table_rows()[name], tmp_path / "out"
    given = CASES[name](Path(shutil.copytree(pipeline, tmp_path / "source")))
    if given.brings or given.leaves or outcome == "refused":
        converted = lensconv("convert", given.source, out, *given.options, *IN_PROCESS, "--json")
    if outcome == "refused":
        assert (converted.code, out.exists()) == (2, False)
        assert given.text in " ".join(converted.result["error"].values())
    # It would connect to the Hub.
    if isinstance(given.source, str):
        return
    planned = lensconv("plan", given.source, *given.options, "--json")
    if outcome == "refused":
        assert planned.result == converted.result
        return
    assert planned.code == 0, planned.stdout
    assert given.text in " ".join(planned.result["notes"])
    assert (outcome == "left out") == bool(given.leaves)
    if given.brings or given.leaves:
        names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
        assert {file["name"] for file in converted.result["files"]} == names
        assert {*given.brings} <= names
        assert not {*given.leaves} & names
