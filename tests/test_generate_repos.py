"""``lensconv generate`` with repos at fault, and with models that do not fit into memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from converter.checkpoint.header import read_header
from converter.measurement.generation import encoding, generate
from converter.memory import free_memory_bytes
from converter.models.lens.layout import LensConfig, lens_tensors
from converter.schemas import load_schema
from tests.checkpoints import write_holes
from tests.conftest import Lensconv, edit_json, names_in, run_process, time_limit
from tests.generations import change_tensors, draw, editable, packed, pixels


def test_repos_that_are_none(tiny_repo: Path, tiny_release: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    (tmp_path / "empty").mkdir()
    for place, expected in (
        (tmp_path / "nowhere", "no such folder"),
        ("hf://microsoft/Lens", "hf://microsoft/Lens: this command needs a copy on this machine"),
        (tmp_path / "empty", "no model_index.json"),
        (tiny_repo / "transformer", "no model_index.json"),
        (tiny_release / "transformer" / "diffusion_pytorch_model.safetensors", "no model_index.json"),
    ):
        outcome = draw(lensconv, place, tmp_path / "x.png")
        assert outcome.code == 2
        assert expected in outcome.result["error"]["message"]


Fault = Callable[[Path], object]


def edited(name: str, **changes: Any) -> Fault:
    return lambda repo: edit_json(repo / name, **changes)


def written(name: str, content: bytes) -> Fault:
    return lambda repo: (repo / name).write_bytes(content)


def removed(name: str) -> Fault:
    return lambda repo: shutil.rmtree(repo / name) if (repo / name).is_dir() else (repo / name).unlink()


def without_tensor(file: str, name: str) -> Fault:
    return lambda repo: change_tensors(repo / file, lambda tensors: tensors.pop(name))


def code_from_the_index(repo: Path) -> None:
    (repo / "transformer" / "evil.py").write_bytes(b"raise SystemExit(99)")
    edit_json(repo / "model_index.json", transformer=["evil", "LensTransformer"])


def truncated_weights(repo: Path) -> None:
    file = repo / "vae" / WEIGHTS
    os.truncate(file, file.stat().st_size // 2)


def pickle(repo: Path) -> None:
    (repo / "text_encoder" / "model.safetensors").rename(repo / "text_encoder" / "pytorch_model.bin")


def tokens_out_of_range(repo: Path) -> None:
    """An embedding that is too small for the tokenizer's ids."""

    def shorten(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:100].contiguous()

    change_tensors(repo / "text_encoder" / "model.safetensors", shorten)
    edit_json(repo / ENCODER, vocab_size=100, pad_token_id=0, eos_token_id=0)


ENCODER, TRANSFORMER = "text_encoder/config.json", "transformer/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
TEMPLATE, TOKENIZER = "tokenizer/chat_template.jinja", "tokenizer/tokenizer.json"
ESCAPE = b"{{ messages.__class__.__mro__[1].__subclasses__() }}"
NONSENSE = b'{"version": "1.0", "model": {"type": "Nonsense"}}'
NORM, CONVOLUTION = "transformer_blocks.1.attn.norm_q.weight", "decoder.conv_out.weight"
SINKS = "model.layers.3.self_attn.sinks"
#: Changes to a repo, and what the message must contain.
FAULTS: dict[str, tuple[Fault, str]] = {
    "another pipeline": (edited("model_index.json", _class_name="FluxPipeline"), "FluxPipeline"),
    "code from the index": (code_from_the_index, "LensTransformer"),
    "missing component": (removed("vae"), "vae"),
    "missing scheduler": (removed(SCHEDULER), "scheduler_config.json"),
    "static scheduler": (edited(SCHEDULER, use_dynamic_shifting=False), "use_dynamic_shifting"),
    "truncated weights": (truncated_weights, "vae"),
    "pickle": (pickle, "pytorch_model.bin"),
    "transformer lacks a tensor": (without_tensor(f"transformer/{WEIGHTS}", NORM), NORM),
    "vae lacks a tensor": (without_tensor(f"vae/{WEIGHTS}", CONVOLUTION), CONVOLUTION),
    "text_encoder lacks a tensor": (without_tensor("text_encoder/model.safetensors", SINKS), SINKS),
    "encoder of another width": (edited(ENCODER, hidden_size=128), "hidden_size"),
    "encoder too shallow": (edited(ENCODER, num_hidden_layers=20), "num_hidden_layers"),
    "absurd depth": (edited(ENCODER, num_hidden_layers=10**9), "num_hidden_layers"),
    "absurd transformer": (edited(TRANSFORMER, num_layers=10**9), "num_layers"),
    "other rotary axes": (edited(TRANSFORMER, axes_dims_rope=[8, 28, 26]), "axes_dims_rope"),
    "kernels from the Hub": (edited(ENCODER, experts_implementation="kernels-community/evil"), "text_encoder"),
    "template that fails": (written(TEMPLATE, ESCAPE), "text_encoder"),
    "template with bad syntax": (written(TEMPLATE, b"{% if %}"), "text_encoder"),
    "no template": (removed(TEMPLATE), "chat_template"),
    "tokenizer of nonsense": (written(TOKENIZER, NONSENSE), "tokenizer"),
    "tokenizer without JSON": (written(TOKENIZER, b"\xff\xfe"), "tokenizer.json"),
    "config is a list": (written("vae/config.json", b"[]"), "config.json"),
    "tokens out of range": (tokens_out_of_range, "text_encoder"),
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
    file = repo / "transformer" / WEIGHTS
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
    monkeypatch.setattr(generate, "load_pipeline", None)
    monkeypatch.setattr(encoding.PromptStage, "encode", None)
    outcome = draw(lensconv, tiny_repo, tmp_path / "x.png", "--height", 16 * 10**6, "--width", 16 * 10**6)
    assert outcome.code == 3
    assert outcome.result["error"]["type"] == "MemoryLimitError"
    assert "GB" in outcome.result["error"]["message"]


def test_the_limits_of_the_shell_count(tiny_repo: Path, tmp_path: Path) -> None:
    """With so little address space that the libraries load and the model would not."""
    limit = 6_000_000_000
    arguments = ("generate", tiny_repo, "--prompt", "x", "--out", tmp_path / "x.png", "--json")
    sides = ("--height", 16384, "--width", 16384)
    done = run_process(*arguments, *sides, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "MemoryLimitError"


def test_a_packed_text_encoder_is_unpacked_and_that_is_said(
    tiny_repo: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    outcome = draw(lensconv, packed(tiny_repo, tmp_path), tmp_path / "x.png")
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
    write_holes(repo / "transformer" / WEIGHTS, [("F32", name, shape) for name, shape in lens_tensors(config)])
    experts = [("U8", f"{name}_blocks", (32, rows, 90, 16)) for name, rows in (("gate_up", 5760), ("down", 2880))]
    tensors: list[Any] = [("BF16", f"{name}.weight", (201088, 2880)) for name in ("model.embed_tokens", "lm_head")]
    tensors += [(dtype, f"model.layers.{n}.{name}", shape) for n in range(24) for dtype, name, shape in experts]
    write_holes(repo / "text_encoder" / "model.safetensors", tensors)
    edit_json(repo / "text_encoder" / "config.json", quantization_config={"quant_method": "mxfp4"})
    started = time.monotonic()
    outcome = draw(lensconv, repo, tmp_path / "x.png")
    assert outcome.code == 3, outcome.stdout
    assert "takes about 40." in outcome.result["error"]["message"]
    assert "it is unpacked" in outcome.stderr
    assert time.monotonic() - started < 60
