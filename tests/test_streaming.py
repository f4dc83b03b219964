"""Conversions whose source is on the Hub: weights are converted while they arrive."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import jsonschema
import pytest
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, convert, errors, plan
from converter.checkpoint.header import read_header
from converter.schemas import load_schema
from tests.conftest import Lensconv, Serve, names_in, snapshot
from tests.loopback import COMMIT, PINNED, PLACE
from tests.reporters import Notes
from tests.streams import (
    WEIGHTS,
    asked,
    manifest_of,
    refusal,
    weights,
)
from tests.tiny_models import save_model

pytestmark = pytest.mark.usefixtures("plain_client")


def test_the_same_release_as_from_disk(serve: Serve, tiny_repo: Path, tiny_release: Path, tmp_path: Path) -> None:
    hub, notes = serve(tiny_repo), Notes()
    convert(PLACE, tmp_path / "out", reporter=notes)
    assert weights(tmp_path / "out") == weights(tiny_release)
    assert names_in(tmp_path) == ["out", "shadows"]
    assert notes.texts == []
    jsonschema.validate(manifest_of(tmp_path / "out"), load_schema("manifest"))
    source = manifest_of(tmp_path / "out")["components"][0]["source"]
    assert source["hub"] == {"repository": "maker/model", "commit": COMMIT, "folder": "transformer"}
    content = (tiny_repo / "transformer" / WEIGHTS).read_bytes()
    assert source["files"][0]["sha256"] == hashlib.sha256(content).hexdigest()
    local = manifest_of(tiny_release)
    del source["hub"], source["files"][0]["sha256"]
    here = manifest_of(tmp_path / "out")
    here["components"][0]["source"] = source
    assert here == local
    # The header is read before, and again with the file.
    assert asked(hub, f"transformer/{WEIGHTS}") == 2
    total = sum(file.stat().st_size for file in tiny_repo.rglob("*") if file.is_file())
    assert total <= hub.sent <= total + 400_000
    assert not any(token for host, _, token in hub.seen if host.startswith("localhost"))


def test_the_command(serve: Serve, sharded: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    serve(sharded)
    done = lensconv("convert", PINNED, tmp_path / "out", "--connections", 3, "--json")
    assert done.code == 0, done.stderr
    jsonschema.validate(done.result, load_schema("convert"))
    assert "lensconv-" not in done.stdout + done.stderr
    convert(sharded, tmp_path / "local")
    assert weights(tmp_path / "out") == weights(tmp_path / "local")


@pytest.mark.parametrize("connections", [1, 3])
def test_shards_are_read_once_each(connections: int, serve: Serve, sharded: Path, tmp_path: Path) -> None:
    hub = serve(sharded)
    convert(PLACE, tmp_path / "out", options=ConvertOptions(connections=connections))
    shards = sorted(file.name for file in sharded.glob("*.safetensors"))
    assert len(shards) > 3
    assert [asked(hub, name) for name in shards] == [2] * len(shards)
    files = manifest_of(tmp_path / "out")["components"][0]["source"]["files"]
    assert all(file["sha256"] == hashlib.sha256((sharded / file["name"]).read_bytes()).hexdigest() for file in files)


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [("sdnq-int8", ()), (None, ("*.attn.*=int8",)), pytest.param("sdnq-float8", (), marks=pytest.mark.long)],
)
def test_other_recipes(
    recipe: str | None, settings: tuple[str, ...], serve: Serve, sharded: Path, tmp_path: Path
) -> None:
    serve(sharded)
    options = ConvertOptions(settings=settings)
    if recipe == "sdnq-float8":
        (tmp_path / "r.toml").write_text('name = "r"\n[sdnq]\nweights_dtype = "float8_e4m3fn"\n')
        recipe = str(tmp_path / "r.toml")
    convert(PLACE, tmp_path / "out", recipe, options)
    convert(sharded, tmp_path / "local", recipe, options)
    assert weights(tmp_path / "out") == weights(tmp_path / "local")


@pytest.mark.parametrize("options", ["use_svd = true\nsvd_rank = 8", "use_dynamic_quantization = true"])
def test_where_the_order_is_that_of_the_modules_nothing_is_proven(
    options: str, serve: Serve, sharded: Path, tmp_path: Path
) -> None:
    """Random numbers, and decisions about dtypes, have the order of the modules; so tensors are read by ranges."""
    (tmp_path / "r.toml").write_text(f'name = "r"\n[sdnq]\nweights_dtype = "int8"\n{options}\n')
    serve(sharded)
    notes = Notes()
    convert(PLACE, tmp_path / "out", str(tmp_path / "r.toml"), reporter=notes)
    convert(sharded, tmp_path / "local", str(tmp_path / "r.toml"))
    assert weights(tmp_path / "out") == weights(tmp_path / "local")
    assert any("no file is compared with its sha256" in text for text in notes.texts)
    files = manifest_of(tmp_path / "out")["components"][0]["source"]["files"]
    assert not any("sha256" in file for file in files)


def test_one_component_alone(serve: Serve, tiny_repo: Path, tmp_path: Path) -> None:
    hub = serve(tiny_repo)
    convert(PLACE, tmp_path / "out", options=ConvertOptions(component_only=True))
    assert not any("vae" in path or "text_encoder" in path for _, path, _ in hub.seen)
    convert(tiny_repo / "transformer", tmp_path / "folder")
    convert(tiny_repo, tmp_path / "local", options=ConvertOptions(component_only=True))
    assert snapshot(tmp_path / "local") == snapshot(tmp_path / "folder")
    assert weights(tmp_path / "out") == weights(tmp_path / "folder")
    assert manifest_of(tmp_path / "out")["components"][0]["source"]["hub"]["folder"] == "transformer"


def test_one_component_alone_must_be_one(several: Path, tmp_path: Path) -> None:
    for source, components, reason in (
        (several, ("all",), "several components"),
        (several / "transformer", (), "has no components"),
    ):
        options = ConvertOptions(components=components, component_only=True)
        assert reason in refusal(lambda: convert(source, tmp_path / "out", options=options), errors.UsageError)  # noqa: B023


def test_too_little_room_for_the_other_components(
    serve: Serve, tiny_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = serve(tiny_repo)
    found = os.statvfs(tmp_path)
    room = sum(file.stat().st_size for file in (tiny_repo / "vae").iterdir()) + 23_000_000
    full = os.statvfs_result((1, 1, *tuple(found)[2:4], room, *tuple(found)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    refusal(lambda: convert(PLACE, tmp_path / "out"), errors.DiskError)
    assert asked(hub, f"transformer/{WEIGHTS}") == 1, "its header"


def test_tied_weights_are_compared_where_they_are(serve: Serve, tmp_path: Path) -> None:
    """The folder in place of the repo has no numbers; a plan that compared its holes would drop one of two tensors."""
    source = save_model(tmp_path / "repo", "T5EncoderModel")
    (file,) = source.glob("*.safetensors")
    tensors = load_file(file)
    names = ["shared.weight", "encoder.embed_tokens.weight"]
    there = next(name for name in names if name in tensors)
    tensors |= {names[0]: tensors[there], names[1]: tensors[there] + 1}
    save_file(tensors, file, {"format": "pt"})
    serve(source)
    assert plan(PLACE).output_bytes == plan(source).output_bytes
    convert(PLACE, tmp_path / "out")
    convert(source, tmp_path / "local")
    assert weights(tmp_path / "out") == weights(tmp_path / "local")


def test_nothing_to_convert_and_nobody_to_ask(
    serve: Serve, tmp_path: Path, lensconv: Lensconv, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "model.bin").write_bytes(b"x")
    serve(tmp_path / "repo")
    assert lensconv("convert", PLACE, tmp_path / "out").code == 2
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = lensconv("convert", PLACE, tmp_path / "out")
    assert offline.code == 4
    assert "HF_HUB_OFFLINE" in offline.stderr
    assert lensconv("convert", "hf://nobody", tmp_path / "out").code == 2


def test_a_release_is_compared_with_its_source_on_the_hub(
    serve: Serve, tiny_repo: Path, tiny_release: Path, lensconv: Lensconv, tmp_path: Path
) -> None:
    hub = serve(tiny_repo)
    done = lensconv("verify", tiny_release, "--against", PLACE, "--json")
    assert done.code == 0, done.stderr
    local = lensconv("verify", tiny_release, "--against", tiny_repo, "--json").result
    assert done.result == local
    size = (tiny_repo / "transformer" / WEIGHTS).stat().st_size
    assert hub.sent < 1.05 * size + 500_000
    wrong = shutil.copytree(tiny_release, tmp_path / "wrong")
    file = wrong / "transformer" / WEIGHTS
    header = read_header(file)
    content = bytearray(file.read_bytes())
    content[header.data_start + header.tensors["img_in.bias"].start] ^= 1
    file.write_bytes(content)
    assert lensconv("verify", wrong, "--against", PLACE).code == 1
    both = lensconv("verify", PLACE, "--against", PLACE)
    assert both.code == 2
    assert "lensconv reproduce" in " ".join(both.stderr.split())
