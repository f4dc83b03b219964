"""``lensconv generate`` with repos at fault, and with models that do not fit into memory."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from converter.checkpoint.header import read_header
from converter.errors import MemoryLimitError, UnsupportedCheckpoint
from converter.measurement.generation import encoding, generate
from converter.measurement.generation.loading import blaming, forwarding_logs
from converter.measurement.generation.memory import LESS_MEMORY
from converter.memory import free_memory_bytes
from converter.schemas import load_schema
from tests.cases import check_cases
from tests.conftest import Lensconv, edit_json, names_in, run_process, time_limit
from tests.generations import change_tensors, draw, editable, packed, pixels
from tests.real_layout import real_repo
from tests.reporters import Notes


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


WEIGHTS = "diffusion_pytorch_model.safetensors"


def damage(repo: Path, step: str, value: Any) -> None:
    """Take a step such as ``edit vae/config.json``."""
    verb, name = step.split()
    file = repo / name
    if verb == "edit":
        edit_json(file, **value)
    elif verb == "write":
        file.write_bytes(value.encode("latin-1"))
    elif verb == "rename":
        file.rename(repo / value)
    elif verb == "halve":
        os.truncate(file, file.stat().st_size // 2)
    elif verb == "drop":
        change_tensors(file, lambda tensors: tensors.pop(value))
    elif verb == "prefix":
        change_tensors(file, lambda tensors: [tensors.update({value + key: tensors.pop(key)}) for key in [*tensors]])
    elif verb == "shorten":
        change_tensors(file, lambda tensors: tensors.update({key: tensors[key][:100].contiguous() for key in value}))
    else:
        shutil.rmtree(file) if file.is_dir() else file.unlink()


def test_a_repo_at_fault_is_named_and_nothing_is_left(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    images = tmp_path / "images"
    images.mkdir()

    def outcome(steps: dict[str, Any]) -> str:
        repo = editable(tiny_repo, tmp_path)
        for step, value in steps.items():
            damage(repo, step, value)
        with time_limit():
            result = draw(lensconv, repo, images / "x.png")
        shutil.rmtree(repo)
        jsonschema.validate(result.result, load_schema("error"))
        error = result.result["error"]
        assert (result.code, names_in(images)) == (2, [])
        said = f"{error['message']} | {error['hint']}".replace(str(repo), "REPO")
        # What a library says of a file is the library's.
        return re.sub(r"(REPO/(?:text_encoder|tokenizer): cannot be used: )[^|]*\|", r"\1… |", said)

    check_cases("faulty_repos.jsonl", outcome)


def test_weights_that_are_no_numbers_make_no_image(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    repo = editable(tiny_repo, tmp_path)
    file = repo / "transformer" / WEIGHTS
    header = read_header(file)
    with file.open("r+b") as stream:
        stream.seek(header.data_start + header.tensors["proj_out.bias"].start)
        stream.write(np.array([np.nan], np.float32).tobytes())
    outcome = draw(lensconv, repo, tmp_path / "x.png")
    assert (outcome.code, outcome.result["error"]["type"]) == (1, "ImageError")
    assert names_in(tmp_path) == ["repo"]


def test_too_little_memory_is_known_before_anything_is_loaded(
    tiny_repo: Path, tmp_path: Path, lensconv: Lensconv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "load_pipeline", None)
    monkeypatch.setattr(encoding.PromptStage, "encode", None)
    outcome = draw(lensconv, tiny_repo, tmp_path / "x.png", "--height", 16 * 10**6, "--width", 16 * 10**6)
    assert (outcome.code, outcome.result["error"]["type"]) == (3, "MemoryLimitError")
    assert "generating takes about 79012345.790 GB more memory, but only " in outcome.result["error"]["message"]
    assert LESS_MEMORY in outcome.result["error"]["hint"]


def test_the_limits_of_the_shell_count(tiny_repo: Path, tmp_path: Path) -> None:
    """With so little address space that the libraries load and the model would not."""
    limit = 6_000_000_000
    arguments = ("generate", tiny_repo, "--prompt", "x", "--out", tmp_path / "x.png", "--json")
    sides = ("--height", 16384, "--width", 16384)
    done = run_process(*arguments, *sides, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert (done.returncode, json.loads(done.stdout)["error"]["type"]) == (3, "MemoryLimitError"), done.stderr


def test_a_packed_text_encoder_is_unpacked_and_that_is_said(
    tiny_repo: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    repo, kept = packed(tiny_repo, tmp_path), ("--features", tmp_path / "kept")
    outcome = draw(lensconv, repo, tmp_path / "x.png", *kept)
    assert outcome.code == 0, outcome.stderr
    said = outcome.stderr.index("it is unpacked, and takes 3.4 MB")
    assert said < outcome.stderr.index("loading the text encoder")
    # Once, and not when it is not needed.
    assert outcome.stderr.count("unpacked") == 1
    assert "unpacked" not in draw(lensconv, repo, tmp_path / "again.png", *kept).stderr
    assert draw(lensconv, tiny_repo, tmp_path / "dense.png").code == 0
    assert (pixels(tmp_path / "x.png") != pixels(tmp_path / "dense.png")).any()


def test_what_models_log_is_noted_while_they_load() -> None:
    model, notes = logging.getLogger("converter.models"), Notes()
    with forwarding_logs(notes):
        model.getChild("any").warning("said of %s", "layers")
        assert not model.propagate
    assert (notes.texts, model.handlers, model.propagate) == (["said of layers"], [], True)


def test_a_lack_of_memory_is_no_fault_of_the_repo() -> None:
    for error in (torch.OutOfMemoryError(), RuntimeError("can't allocate memory: 1"), OSError("not enough memory")):
        with pytest.raises(MemoryLimitError, match="is not enough memory: ") as caught, blaming(Path("vae")):
            raise error
        assert caught.value.hint == LESS_MEMORY
    with pytest.raises(UnsupportedCheckpoint, match=r"^vae: cannot be used: KeyError\(\)$"), blaming(Path("vae")):
        raise KeyError


def test_the_real_text_encoder_is_known_not_to_fit(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    """A repo whose text encoder has the real size, as headers and holes; unpacked, it takes 41.8 GB."""
    if free_memory_bytes() > 40_000_000_000:
        pytest.skip("it fits")
    repo = real_repo(tiny_repo, tmp_path)
    started = time.monotonic()
    outcome = draw(lensconv, repo, tmp_path / "x.png")
    assert outcome.code == 3, outcome.stdout
    assert "takes about 41.9" in outcome.result["error"]["message"]
    assert "it is unpacked" in outcome.stderr
    assert time.monotonic() - started < 60
