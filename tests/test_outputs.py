"""What plan, convert, verify and synth print and write, whole, for the same tiny inputs."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.conversion.release.manifest import MANIFEST_NAME as MANIFEST
from tests.conftest import call, snapshot
from tests.expected import check_expected
from tests.forms import accepted
from tests.tiny_models import WEIGHTS, make_pipeline, save_model

#: What differs between machines, versions and runs, and what is shown instead.
VOLATILE = (
    (r"\b[0-9a-f]{64}\b|(?<=  )[0-9a-f]{16}\b", "SHA256"),
    (r'"(diffusers|lensconv|safetensors|sdnq|torch|transformers|sdnq_version)": "[0-9][^"]*"', r'"\1": "1"'),
    (r'(lensconv_manifest.json(?:", "bytes":)?) +[0-9.]+( kB)?', r"\1 1\2"),
    (r'"(elapsed_s|bytes_read_per_s|peak_rss_bytes|peak_memory_bytes)": [0-9.e+]+', r'"\1": 1'),
    (r"[\d.]+ s, [\d.]+ .?B/s, peak memory [\d.]+ [MG]B", "1 s, 1 B/s, peak memory 1 MB"),
    (r"[\d.]+ s\.$", "1 s."),
    (r"about [\d.]+ [MG]B", "about 1 MB"),
    (r"^(comparing|converting|deciding|generating|hashing|other components): .*\n", ""),
)
#: What may be missing, below 0 or of any kind.
LOOSE = re.compile(r"assumed_config more|[.]sdnq|[.]quantized[.]|fidelity( less|.* below)|(_s|seed|vs_\w+) below")


def stable(text: str, folder: Path) -> str:
    """A text without paths, checksums, versions, times and memory."""
    text = text.replace(str(folder), "FOLDER")
    for pattern, shown in VOLATILE:
        text = re.sub(pattern, shown, text, flags=re.MULTILINE)
    return "".join(line.rstrip() + "\n" for line in text.splitlines() if line.strip())


def compact(content: dict[str, Any]) -> str:
    """JSON in a line; floats have three digits, as the others are the processor's affair."""
    return re.sub(r"\d+\.\d+(e-\d+)?", lambda number: f"{float(number[0]):.3g}", json.dumps(content)) + "\n"


def printed(folder: Path, *arguments: object) -> str:
    """What a command prints for people."""
    outcome = call(*arguments)
    assert outcome.stdout == ""
    return stable(f"{outcome.stderr}exit {outcome.code}", folder)


def result_of(folder: Path, *arguments: object) -> str:
    """What a command prints as JSON, after its schema."""
    result = call(*arguments, "--json").result
    assert [label for label in accepted(result, str(arguments[0])) if not LOOSE.search(label)] == []
    return stable(compact(result), folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where everything is, on a terminal so wide that the length of its path does not matter."""
    monkeypatch.setenv("COLUMNS", "1000")
    return tmp_path


#: A recipe of which a plan has everything to note.
RECIPE = """name = "everything"\nseed = 7\n[sdnq]\nweights_dtype = "uint4"\nuse_svd = true\nsvd_rank = 8
use_dynamic_quantization = true\nscale_dtype = "uint8"
"""


def test_a_plan(folder: Path) -> None:
    source = save_model(folder / "source", "LensTransformer2DModel", dtype=torch.float16, num_layers=1)
    tensors = load_file(source / WEIGHTS)
    save_file(tensors | {"proj_out.bias": tensors["proj_out.bias"].bfloat16()}, source / WEIGHTS)
    save_file({"x": torch.ones(1)}, source / "stray.safetensors")
    (folder / "mine.toml").write_text(RECIPE)
    options = ("--recipe", folder / "mine.toml", "--set", "*.img_mlp.*=keep", "--max-shard-size", "200kB")
    text = printed(folder, "plan", source, *options) + result_of(folder, "plan", source)
    check_expected("plan.txt", text)


def test_a_conversion_and_all_that_it_writes(folder: Path) -> None:
    source = make_pipeline(folder / "source")
    file = source / "transformer" / WEIGHTS
    tensors = load_file(file)
    tensors["transformer_blocks.0.attn.img_qkv.weight"][3, 5:7] = np.nan
    tensors["proj_out.bias"][0] = -np.inf
    save_file(tensors, file, metadata={"format": "pt"})
    options = ("--set", "*.img_mlp.*=keep", "--max-shard-size", "1.5MB", "--allow-nonfinite", "--overwrite")
    text = printed(folder, "convert", source, folder / "out", *options)
    text += result_of(folder, "convert", source, folder / "out", *options)
    written = snapshot(folder / "out")
    manifest = json.loads(written.pop(MANIFEST))
    assert [label for label in accepted(manifest, "manifest") if not LOOSE.search(label)] == []
    sums = {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in written.items()}
    assert {file["name"]: (file["bytes"], file["sha256"]) for file in manifest["files"]} == sums
    config = json.loads(written["transformer/quantization_config.json"])
    assert (
        config
        == json.loads(written["transformer/config.json"])["quantization_config"]
        == manifest["components"][0]["recipe"]["sdnq"]
    )
    text += stable(compact(manifest) + compact(json.loads(written["sdnq_quantization_summary.json"])), folder)
    check_expected("convert.txt", text)


def test_verification(folder: Path, lens_source: Path, lens_output: Path) -> None:
    options = ("--against", lens_source, "--recipe", "lens-uint4-static", "--checksums", "--load")
    line = ("verify", lens_output, *options, "--fail-under-sqnr", "9.5")
    check_expected("verify.txt", printed(folder, *line) + result_of(folder, *line))


def test_synthesis(folder: Path, tiny_repo: Path) -> None:
    """The numbers are the same for everybody, so their checksums are, too."""
    line = ("synth", folder / "out", "--preset", "tiny", "--component", "transformer", "--layers", "1")
    text = printed(folder, *line, "--seed", "3", "--max-shard-size", "2MB")
    text += result_of(folder, *line[:4], "--layers", "1", "--max-shard-size", "400kB", "--overwrite")
    for name, content in snapshot(tiny_repo).items():
        text += f"{name} {len(content)} {hashlib.sha256(content).hexdigest()[:12]}\n"
    check_expected("synth.txt", text)
