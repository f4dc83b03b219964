"""``lensconv generate``: images from original and quantized repos, and one line for everything else."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from converter.checkpoint.header import read_header
from converter.memory import free_memory_bytes
from converter.models.lens.layout import LensConfig, lens_tensors
from converter.schemas import load_schema
from tests.conftest import ROOT, Outcome, command, names_in, snapshot, time_limit

Lensconv = Callable[..., Outcome]
#: Small and few, so that an image takes a tenth of a second.
SMALL = ("--height", 64, "--width", 96, "--steps", 2)


def draw(lensconv: Lensconv, repo: Path, output: Path, *options: object, prompt: str = "a red cube") -> Outcome:
    return lensconv("generate", repo, "--prompt", prompt, "--out", output, *SMALL, *options, "--json")


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image).astype(int)


def editable(repo: Path, folder: Path) -> Path:
    """A copy whose files may be changed."""
    return Path(shutil.copytree(repo, folder / "repo"))


def edit_json(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps(content))


def test_an_image_tells_how_it_was_made(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    prompt = 'Вывеска "ТИПОГРАФИЯ" & <b>lamps</b>'
    outcome = draw(lensconv, tiny_repo, tmp_path / "image.png", "--negative-prompt", "blur", "--seed", 7, prompt=prompt)
    assert outcome.code == 0, outcome.stderr
    result = outcome.result
    jsonschema.validate(result, load_schema("generate"))
    assert result["image"] == str(tmp_path / "image.png")
    assert result["seed"] == 7
    with Image.open(tmp_path / "image.png") as image:
        assert image.size == (96, 64)
        assert image.mode == "RGB"
        texts = image.text  # type: ignore[attr-defined]
    assert texts["prompt"] == prompt
    assert texts["negative_prompt"] == "blur"
    settings = json.loads(texts["lensconv"])
    assert settings == result["settings"]
    assert settings["prompt"] == prompt
    assert (settings["steps"], settings["guidance"], settings["quantization"]) == (2, 5.0, None)
    assert "encoding the prompt" in outcome.stderr
    assert names_in(tmp_path) == ["image.png"]


def test_the_same_settings_give_the_same_bytes_and_others_do_not(
    tiny_repo: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    variants: dict[str, tuple[object, ...]] = {
        "first": (),
        "again": (),
        "seed": ("--seed", 1),
        "negative": ("--negative-prompt", "ugly"),
        "guidance": ("--guidance", 1),
        "date": ("--date", "2020-01-31"),
    }
    for name, options in variants.items():
        assert draw(lensconv, tiny_repo, tmp_path / f"{name}.png", *options).code == 0
    assert draw(lensconv, tiny_repo, tmp_path / "prompt.png", prompt="two dogs").code == 0
    first = (tmp_path / "first.png").read_bytes()
    assert (tmp_path / "again.png").read_bytes() == first
    for name in ("seed", "negative", "guidance", "date", "prompt"):
        assert (pixels(tmp_path / f"{name}.png") != pixels(tmp_path / "first.png")).any(), name


def test_offloading_and_quantizing_change_nothing_and_little(
    tiny_repo: Path, tiny_release: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    for name, repo, offloads in (("original", tiny_repo, ("model",)), ("quantized", tiny_release, ("sequential",))):
        for offload in ("none", *offloads):
            outcome = draw(lensconv, repo, tmp_path / f"{name}-{offload}.png", "--offload", offload)
            assert outcome.code == 0, outcome.stderr
            assert ("saves no memory on a CPU" in outcome.stderr) == (offload != "none")
            plain = (tmp_path / f"{name}-none.png").read_bytes()
            assert (tmp_path / f"{name}-{offload}.png").read_bytes() == plain
    assert outcome.result["settings"]["quantization"] == {
        "weights_dtype": "uint4",
        "layers": 40,
        "quantized_matmul": "int8",
    }
    difference = np.abs(pixels(tmp_path / "quantized-none.png") - pixels(tmp_path / "original-none.png"))
    # Another seed differs by 50 levels on average, here as with the real model.
    assert 0 < difference.mean() < 10
    assert draw(lensconv, tiny_repo, tmp_path / "float32.png", "--dtype", "float32").code == 0
    difference = np.abs(pixels(tmp_path / "float32.png") - pixels(tmp_path / "original-none.png"))
    assert 0 < difference.mean() < 10


def test_sizes(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    def size_of(*options: object) -> tuple[int, int]:
        output = tmp_path / "image.png"
        outcome = lensconv(
            "generate", tiny_repo, "--prompt", "x", "--out", output, "--steps", 1, "--guidance", 1, "--overwrite",
            *options, "--json",
        )  # fmt: skip
        assert outcome.code == 0, outcome.stderr
        with Image.open(output) as image:
            assert image.size == (outcome.result["settings"]["width"], outcome.result["settings"]["height"])
            return image.size

    assert size_of() == (256, 256)
    assert size_of("--base-resolution", 1024, "--aspect-ratio", "3:4") == (864, 1152)


def test_defaults_suit_the_variant(tiny_repo: Path, tmp_path: Path) -> None:
    from converter.measurement.generation.options import GenerateOptions
    from converter.measurement.generation.repo import open_pipeline
    from converter.measurement.generation.settings import choose_settings

    found = {}
    for name in ("Lens", "Lens-Turbo-uint4", "models--microsoft--Lens-Base/snapshots/abc"):
        folder = tmp_path / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(tiny_repo)
        settings = choose_settings(open_pipeline(folder), "x", GenerateOptions(base_resolution=1440))
        found[name] = settings.steps, settings.guidance, settings.height, settings.width
    assert [*found.values()] == [(20, 5.0, 1440, 1440), (4, 1.0, 1440, 1440), (50, 5.0, 1440, 1440)]
    # The real autoencoder's images are not small; the published ones are of the larger class.
    real = editable(tiny_repo, tmp_path)
    edit_json(real / "vae" / "config.json", sample_size=1024)
    settings = choose_settings(open_pipeline(real), "x", GenerateOptions())
    assert (settings.height, settings.width) == (1440, 1440)
    settings = choose_settings(open_pipeline(real), "x", GenerateOptions(aspect_ratio="16:9"))
    assert (settings.height, settings.width) == (1088, 1936)
    settings = choose_settings(open_pipeline(tiny_repo), "x", GenerateOptions(base_resolution=1024))
    assert (settings.height, settings.width) == (1024, 1024)


def test_kept_features_spare_the_text_encoder(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    repo, kept = editable(tiny_repo, tmp_path), tmp_path / "kept"
    images = tmp_path / "images"
    images.mkdir()
    options = ("--features", kept, "--negative-prompt", "blur")
    assert draw(lensconv, repo, images / "first.png", *options).code == 0
    assert len(names_in(kept)) == 2
    outcome = draw(lensconv, repo, images / "second.png", *options)
    assert "text encoder" not in outcome.stderr
    assert draw(lensconv, repo, images / "without.png", "--negative-prompt", "blur").code == 0
    first = (images / "first.png").read_bytes()
    assert (images / "second.png").read_bytes() == first
    assert (images / "without.png").read_bytes() == first
    # What is damaged, or of other weights or another day, is made anew.
    before = snapshot(kept)
    for file in kept.iterdir():
        file.write_bytes(file.read_bytes()[:-7])
    assert draw(lensconv, repo, images / "third.png", *options).code == 0
    assert snapshot(kept) == before
    assert "text encoder" in draw(lensconv, repo, images / "date.png", *options, "--date", "2024-02-29").stderr
    weights = repo / "text_encoder" / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert "text encoder" in draw(lensconv, repo, images / "other.png", *options).stderr
    assert len(names_in(kept)) == 6


@pytest.mark.parametrize("content", ["", "{}", "not-safetensors", "nan", "shape"])
def test_features_that_are_none_are_made_anew(
    tiny_repo: Path, tmp_path: Path, lensconv: Lensconv, content: str
) -> None:
    from safetensors.torch import load_file, save_file

    kept = tmp_path / "kept"
    assert draw(lensconv, tiny_repo, tmp_path / "first.png", "--features", kept).code == 0
    (file,) = kept.iterdir()
    good = file.read_bytes()
    if content in ("nan", "shape"):
        tensors = load_file(file)
        tensors["2"] = tensors["2"] * torch.nan if content == "nan" else tensors["2"][..., 1:].contiguous()
        save_file(tensors, file)
    else:
        file.write_text(content)
    assert draw(lensconv, tiny_repo, tmp_path / "second.png", "--features", kept).code == 0
    assert file.read_bytes() == good


BAD_OPTIONS: dict[str, tuple[tuple[object, ...], str]] = {
    "aspect ratio": (("--aspect-ratio", "5:4"), "5:4"),
    "base resolution": (("--base-resolution", 512), "512"),
    "one side": (("--height", 64), "together"),
    "both ways": (("--height", 64, "--width", 64, "--aspect-ratio", "1:1"), "together"),
    "size": (("--height", 65, "--width", 64), "multiple of 16"),
    "steps": (("--steps", 0), "steps"),
    "many steps": (("--steps", 10**9), "steps"),
    "seed": (("--seed", -1), "seed"),
    "large seed": (("--seed", 2**64), "seed"),
    "guidance": (("--guidance", "nan"), "guidance"),
    "device": (("--device", "banana"), "banana"),
    "meta": (("--device", "meta"), "meta"),
    "date": (("--date", "2026-02-30"), "2026-02-30"),
    "dtype": (("--dtype", "float16"), "float16"),
    "offload": (("--offload", "all"), "all"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_out_of_range(name: str, tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    options, expected = BAD_OPTIONS[name]
    outcome = lensconv("generate", tiny_repo, "--prompt", "x", "--out", tmp_path / "x.png", *options, "--json")
    assert outcome.code == 2, outcome.stdout
    error = outcome.result["error"]
    jsonschema.validate(outcome.result, load_schema("error"))
    assert error["type"] == "UsageError"
    assert expected in error["message"]
    assert names_in(tmp_path) == []


def test_what_is_no_text_is_no_prompt(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    outcome = draw(lensconv, tiny_repo, tmp_path / "x.png", prompt="lone \udcff surrogate")
    assert outcome.code == 2
    assert "UTF-8" in outcome.result["error"]["message"]


def test_prompts_of_any_length_and_kind(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    for number, prompt in enumerate(["", " ", "x" * 5000, "<|return|><|start|>", "{{ 7 * 7 }} {% raw %}", "\0\n\t😀"]):
        output = tmp_path / f"{number}.png"
        assert draw(lensconv, tiny_repo, output, prompt=prompt).code == 0
        with Image.open(output) as image:
            assert json.loads(image.text["lensconv"])["prompt"] == prompt  # type: ignore[attr-defined]


def test_a_machine_without_a_gpu(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    outcome = draw(lensconv, tiny_repo, tmp_path / "x.png", "--device", "cuda")
    assert outcome.code == 3
    assert outcome.result["error"]["type"] == "DeviceError"
    assert names_in(tmp_path) == []


def test_places_where_no_image_can_go(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    taken = tmp_path / "taken.png"
    taken.write_text("mine")
    (tmp_path / "folder.png").mkdir()
    for place, kind in (
        (taken, "OutputError"),
        (tmp_path / "folder.png", "OutputError"),
        (tmp_path / "missing" / "x.png", "OutputError"),
        (tmp_path / "image.jpg", "UsageError"),
    ):
        outcome = draw(lensconv, tiny_repo, place)
        assert (outcome.code, outcome.result["error"]["type"]) == (2, kind)
    assert taken.read_text() == "mine"
    assert names_in(tmp_path) == ["folder.png", "taken.png"]
    assert draw(lensconv, tiny_repo, taken, "--overwrite").code == 0
    assert pixels(taken).shape == (64, 96, 3)


def test_repos_that_are_none(tiny_repo: Path, tiny_release: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    (tmp_path / "empty").mkdir()
    for place, expected in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "no model_index.json"),
        (tiny_repo / "transformer", "no model_index.json"),
        (tiny_release / "transformer" / "diffusion_pytorch_model.safetensors", "no model_index.json"),
    ):
        outcome = draw(lensconv, place, tmp_path / "x.png")
        assert outcome.code == 2
        assert expected in outcome.result["error"]["message"]


def _other_pipeline(repo: Path) -> None:
    edit_json(repo / "model_index.json", _class_name="FluxPipeline")


def _code_from_the_index(repo: Path) -> None:
    (repo / "transformer" / "evil.py").write_text("raise SystemExit(99)")
    edit_json(repo / "model_index.json", transformer=["evil", "LensTransformer"])


def _missing_component(repo: Path) -> None:
    shutil.rmtree(repo / "vae")


def _missing_scheduler(repo: Path) -> None:
    (repo / "scheduler" / "scheduler_config.json").unlink()


def _static_scheduler(repo: Path) -> None:
    edit_json(repo / "scheduler" / "scheduler_config.json", use_dynamic_shifting=False)


def _truncated_weights(repo: Path) -> None:
    file = repo / "vae" / "diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def _pickle(repo: Path) -> None:
    (repo / "text_encoder" / "model.safetensors").rename(repo / "text_encoder" / "pytorch_model.bin")


def _without_tensor(repo: Path, component: str, stem: str, name: str) -> None:
    from safetensors.torch import load_file, save_file

    file = repo / component / f"{stem}.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})


def _transformer_lacks_a_tensor(repo: Path) -> None:
    _without_tensor(repo, "transformer", "diffusion_pytorch_model", "transformer_blocks.1.attn.norm_q.weight")


def _vae_lacks_a_tensor(repo: Path) -> None:
    _without_tensor(repo, "vae", "diffusion_pytorch_model", "decoder.conv_out.weight")


def _encoder_lacks_a_tensor(repo: Path) -> None:
    _without_tensor(repo, "text_encoder", "model", "model.layers.3.self_attn.sinks")


def _encoder_of_other_width(repo: Path) -> None:
    edit_json(repo / "text_encoder" / "config.json", hidden_size=128)


def _encoder_too_shallow(repo: Path) -> None:
    edit_json(repo / "text_encoder" / "config.json", num_hidden_layers=20)


def _absurd_depth(repo: Path) -> None:
    edit_json(repo / "text_encoder" / "config.json", num_hidden_layers=10**9)


def _absurd_transformer(repo: Path) -> None:
    edit_json(repo / "transformer" / "config.json", num_layers=10**9)


def _other_rotary_axes(repo: Path) -> None:
    edit_json(repo / "transformer" / "config.json", axes_dims_rope=[8, 28, 26])


def _kernels_from_the_hub(repo: Path) -> None:
    edit_json(repo / "text_encoder" / "config.json", experts_implementation="kernels-community/evil")


def _template_that_fails(repo: Path) -> None:
    (repo / "tokenizer" / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")


def _template_with_bad_syntax(repo: Path) -> None:
    (repo / "tokenizer" / "chat_template.jinja").write_text("{% if %}")


def _no_template(repo: Path) -> None:
    (repo / "tokenizer" / "chat_template.jinja").unlink()


def _tokenizer_is_garbage(repo: Path) -> None:
    (repo / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nonsense"}}')


def _tokenizer_without_json(repo: Path) -> None:
    (repo / "tokenizer" / "tokenizer.json").write_bytes(b"\xff\xfe")


def _vae_config_is_a_list(repo: Path) -> None:
    (repo / "vae" / "config.json").write_text("[]")


def _tokens_out_of_range(repo: Path) -> None:
    """An embedding that is too small for the tokenizer's ids."""
    from safetensors.torch import load_file, save_file

    file = repo / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:100].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    edit_json(repo / "text_encoder" / "config.json", vocab_size=100, pad_token_id=0, eos_token_id=0)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    fault.__name__.strip("_"): (fault, expected)
    for fault, expected in (
        (_other_pipeline, "FluxPipeline"),
        (_code_from_the_index, "LensTransformer"),
        (_missing_component, "vae"),
        (_missing_scheduler, "scheduler_config.json"),
        (_static_scheduler, "use_dynamic_shifting"),
        (_truncated_weights, "vae"),
        (_pickle, "pytorch_model.bin"),
        (_transformer_lacks_a_tensor, "transformer_blocks.1.attn.norm_q.weight"),
        (_vae_lacks_a_tensor, "decoder.conv_out.weight"),
        (_encoder_lacks_a_tensor, "model.layers.3.self_attn.sinks"),
        (_encoder_of_other_width, "hidden_size"),
        (_encoder_too_shallow, "num_hidden_layers"),
        (_absurd_depth, "num_hidden_layers"),
        (_absurd_transformer, "num_layers"),
        (_other_rotary_axes, "axes_dims_rope"),
        (_kernels_from_the_hub, "text_encoder"),
        (_template_that_fails, "text_encoder"),
        (_template_with_bad_syntax, "text_encoder"),
        (_no_template, "chat_template"),
        (_tokenizer_is_garbage, "tokenizer"),
        (_tokenizer_without_json, "tokenizer.json"),
        (_vae_config_is_a_list, "config.json"),
        (_tokens_out_of_range, "text_encoder"),
    )
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_repo_at_fault_is_named_and_nothing_is_left(
    name: str, tiny_repo: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    fault, expected = FAULTS[name]
    repo = editable(tiny_repo, tmp_path)
    fault(repo)
    images = tmp_path / "images"
    images.mkdir()
    with time_limit():
        outcome = draw(lensconv, repo, images / "x.png")
    assert outcome.code == 2, outcome.stdout
    error = outcome.result["error"]
    jsonschema.validate(outcome.result, load_schema("error"))
    assert expected in error["message"]
    assert str(repo) in error["message"]
    assert names_in(images) == []


def test_weights_that_are_no_numbers_make_no_image(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    repo = editable(tiny_repo, tmp_path)
    file = repo / "transformer" / "diffusion_pytorch_model.safetensors"
    header = read_header(file)
    with file.open("r+b") as stream:
        stream.seek(header.data_start + header.tensors["proj_out.bias"].start)
        stream.write(np.array([np.nan], np.float32).tobytes())
    outcome = draw(lensconv, repo, tmp_path / "x.png")
    assert outcome.code == 1
    assert outcome.result["error"]["type"] == "ImageError"
    assert names_in(tmp_path) == ["repo"]


def test_too_little_memory_is_known_before_anything_is_loaded(
    tiny_repo: Path, tmp_path: Path, lensconv: Lensconv, monkeypatch: pytest.MonkeyPatch
) -> None:
    from converter.measurement.generation import encoding, generate

    monkeypatch.setattr(generate, "load_pipeline", None)
    monkeypatch.setattr(encoding.PromptStage, "encode", None)
    outcome = draw(lensconv, tiny_repo, tmp_path / "x.png", "--height", 16 * 10**6, "--width", 16 * 10**6)
    assert outcome.code == 3
    error = outcome.result["error"]
    assert error["type"] == "MemoryLimitError"
    assert "GB" in error["message"]


def test_the_limits_of_the_shell_count(tiny_repo: Path, tmp_path: Path) -> None:
    """With so little address space that the libraries load and the model would not."""
    limit = 6_000_000_000
    done = subprocess.run(
        command(
            "generate", tiny_repo, "--prompt", "x", "--out", tmp_path / "x.png", "--json",
            "--height", 16384, "--width", 16384,
        ),
        capture_output=True, text=True, check=False, cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "MemoryLimitError"


def test_quiet_is_quiet(tiny_repo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], lensconv: Lensconv) -> None:
    """Neither this project nor a library says anything."""
    outcome = lensconv("generate", tiny_repo, "--prompt", "x", *SMALL, "--out", tmp_path / "x.png", "--quiet")
    assert outcome == Outcome(0, "", "")
    assert capfd.readouterr() == ("", "")


def test_a_run_that_is_stopped_while_it_imports_leaves_nothing(tiny_repo: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("generate", tiny_repo, "--prompt", "x", "--out", tmp_path / "x.png"),
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.terminate()
    with time_limit(120):
        _, said = process.communicate()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert names_in(tmp_path) == []


def test_a_run_that_is_stopped_while_it_draws_leaves_nothing(tiny_repo: Path, tmp_path: Path) -> None:
    """On a terminal, where a bar shows the steps."""
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        command("generate", tiny_repo, "--prompt", "x", "--out", tmp_path / "x.png", "--steps", 1000),
        stderr=end, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(end)
    said = ""
    with time_limit(120):
        while not re.search(r"\b[1-9]\d*/1000 steps", said):
            said += read_terminal(terminal)
        process.send_signal(signal.SIGINT)
        while more := read_terminal(terminal):
            said += more
        stdout, _ = process.communicate()
    os.close(terminal)
    assert (process.returncode, stdout) == (130, b""), said
    assert "Traceback" not in said
    assert names_in(tmp_path) == []


def read_terminal(terminal: int) -> str:
    """What a process has written to a terminal, without control sequences; empty when there is nobody any more."""
    try:
        content = os.read(terminal, 1 << 16)
    except OSError:
        # So does Linux tell that the other end is closed.
        return ""
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", content.decode(errors="replace"))


def pack_experts(repo: Path) -> None:
    """Put the text encoder's experts into MXFP4, as those of GPT-OSS are published: random codes, scales near one."""
    from safetensors.torch import load_file, save_file

    file = repo / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = experts, outputs, inputs // 32
        tensors[f"{name}_blocks"] = torch.randint(256, (*shape, 16), dtype=torch.uint8, generator=generator)
        tensors[f"{name}_scales"] = torch.randint(118, 122, shape, dtype=torch.uint8, generator=generator)
    save_file(tensors, file, metadata={"format": "pt"})
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    edit_json(
        repo / "text_encoder" / "config.json",
        quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": kept},
    )


def test_a_packed_text_encoder_is_unpacked_and_that_is_said(
    tiny_repo: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    repo = editable(tiny_repo, tmp_path)
    pack_experts(repo)
    outcome = draw(lensconv, repo, tmp_path / "x.png")
    assert outcome.code == 0, outcome.stderr
    said = outcome.stderr.index("it is unpacked, and takes 3.4 MB")
    assert said < outcome.stderr.index("loading the text encoder")
    assert draw(lensconv, tiny_repo, tmp_path / "dense.png").code == 0
    assert (pixels(tmp_path / "x.png") != pixels(tmp_path / "dense.png")).any()


def test_the_real_text_encoder_is_known_not_to_fit(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    """A repo whose text encoder has the real size, as headers and holes; unpacked, it takes 41.8 GB."""
    if free_memory_bytes() > 40_000_000_000:
        pytest.skip("it fits")
    repo = editable(tiny_repo, tmp_path)
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_local_experts")
    sizes = dict(zip(names, (2880, 2880, 64, 8, 32), strict=True))
    edit_json(repo / "text_encoder" / "config.json", **sizes, head_dim=64, num_experts_per_tok=4, vocab_size=201088)
    edit_json(repo / "transformer" / "config.json", enc_hidden_dim=2880, num_layers=1)
    config = LensConfig.from_dict(json.loads((repo / "transformer" / "config.json").read_text()))
    write_holes(
        repo / "transformer" / "diffusion_pytorch_model.safetensors",
        [("F32", name, shape) for name, shape in lens_tensors(config)],
    )
    experts = [("U8", f"{name}_blocks", (32, rows, 90, 16)) for name, rows in (("gate_up", 5760), ("down", 2880))]
    write_holes(
        repo / "text_encoder" / "model.safetensors",
        [
            ("BF16", "model.embed_tokens.weight", (201088, 2880)),
            ("BF16", "lm_head.weight", (201088, 2880)),
            *((dtype, f"model.layers.{layer}.{name}", shape) for layer in range(24) for dtype, name, shape in experts),
        ],
    )
    edit_json(repo / "text_encoder" / "config.json", quantization_config={"quant_method": "mxfp4"})
    started = time.monotonic()
    outcome = draw(lensconv, repo, tmp_path / "x.png")
    assert outcome.code == 3, outcome.stdout
    assert "takes about 40." in outcome.result["error"]["message"]
    assert "it is unpacked" in outcome.stderr
    assert time.monotonic() - started < 60


def write_holes(file: Path, tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
    """A safetensors file of so many tensors that takes no space."""
    content, position = {}, 0
    for dtype, name, shape in tensors:
        size = math.prod(shape) * {"F32": 4, "BF16": 2, "U8": 1}[dtype]
        content[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    header = json.dumps(content).encode()
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + position)
