"""Conversions whose source is on the Hub: weights are converted while they arrive."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, convert, errors, plan
from converter.checkpoint import running_hash
from converter.checkpoint.header import read_header
from converter.hub.shadow import FIRST_BYTES
from converter.schemas import load_schema
from tests.conftest import Lensconv, Serve, command, edit_json, names_in, snapshot
from tests.loopback import COMMIT, PINNED, PLACE, Handler, LoopbackHub
from tests.reporters import Notes
from tests.tiny_models import save_model

pytestmark = pytest.mark.usefixtures("plain_client")

WEIGHTS = "diffusion_pytorch_model.safetensors"
MANIFEST = "lensconv_manifest.json"
#: Bytes that a slow server sends at a time.
SENT_BYTES = 65536
Fault = Callable[[Handler], object]


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Lens transformer in several shards."""
    return save_model(tmp_path_factory.mktemp("sharded") / "lens", "LensTransformer2DModel", shard="400KB")


def weights(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, which says where the source was."""
    return {name: content for name, content in snapshot(folder).items() if name != MANIFEST}


def asked(hub: LoopbackHub, path: str) -> int:
    """How often the content of a file was asked for."""
    return sum(f"/lfs/{path}" in seen for _, seen, _ in hub.seen)


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return content


def refusal(call: Callable[[], object], kind: type[errors.LensconvError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    text = f"{caught.value.message} {caught.value.hint}"
    assert not any(secret in text for secret in ("Secret", "lensconv-", "Signature"))
    return text


def piece_of(handler: Handler) -> tuple[bytes, dict[str, str]]:
    """The bytes that a request for a range asks for, and the header of the right answer."""
    path = handler.path.partition("?")[0].removeprefix("/lfs/")
    content = (handler.hub.folder / path).read_bytes()
    start, last = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
    return content[start : last + 1], {"Content-Range": f"bytes {start}-{last}/{len(content)}"}


def test_the_same_release_as_from_disk(serve: Serve, tiny_repo: Path, tiny_release: Path, tmp_path: Path) -> None:
    hub, notes = serve(tiny_repo), Notes()
    convert(PLACE, tmp_path / "out", reporter=notes)
    assert weights(tmp_path / "out") == weights(tiny_release)
    assert names_in(tmp_path) == ["out", "shadows"]
    assert notes.texts == []
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


def reset(handler: Handler) -> None:
    """Half of the answer, then a broken connection."""
    content, headers = piece_of(handler)
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(content)))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.hub.sent += len(content) // 2
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def short(handler: Handler) -> None:
    """Half of the answer, without its length, then the end."""
    content, headers = piece_of(handler)
    handler.send_response(206)
    for name, value in {**headers, "Connection": "close"}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.hub.sent += len(content) // 2
    handler.close_connection = True


def ignored_range(handler: Handler) -> None:
    """The whole file, whatever was asked for."""
    path = handler.path.partition("?")[0].removeprefix("/lfs/")
    handler.reply((handler.hub.folder / path).read_bytes())


def status(code: int, **headers: str) -> Fault:
    return lambda handler: handler.reply(b"<Error>", code, headers)


def some_times(hub: LoopbackHub, path: str, fault: Fault, times: int, skip: int = 0) -> None:
    """Let requests for a file fail so often, after some that do not."""
    counted = [0]

    def answer(handler: Handler) -> None:
        counted[0] += 1
        if skip < counted[0] <= skip + times:
            fault(handler)
        else:
            handler.piece(handler.hub.folder / handler.path.partition("?")[0].removeprefix("/lfs/"))

    hub.faults[f"/lfs/{path}"] = answer


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        (reset, 3),
        (short, 3),
        (status(429, **{"Retry-After": "0"}), 2),
        (status(503), 2),
        (status(403), 1),
        (ignored_range, 1),
    ],
)
def test_faults_that_pass(fault: Fault, times: int, serve: Serve, lens_source: Path, tmp_path: Path) -> None:
    hub = serve(lens_source)
    some_times(hub, WEIGHTS, fault, times, skip=1)
    convert(PLACE, tmp_path / "out")
    convert(lens_source, tmp_path / "local")
    assert weights(tmp_path / "out") == weights(tmp_path / "local")
    size = (lens_source / WEIGHTS).stat().st_size
    # What has arrived is not asked for again. A reset drops what was on its way.
    assert fault is reset or hub.sent < 1.05 * size + 400_000


def test_a_server_that_ignores_ranges_after_a_break(serve: Serve, lens_source: Path, tmp_path: Path) -> None:
    hub, notes = serve(lens_source), Notes()
    some_times(hub, WEIGHTS, lambda handler: (reset, ignored_range)[asked(hub, WEIGHTS) > 2](handler), 2, skip=1)
    convert(PLACE, tmp_path / "out", reporter=notes)
    assert any("ignores ranges; the file is read from its beginning" in text for text in notes.texts)
    convert(lens_source, tmp_path / "local")
    assert weights(tmp_path / "out") == weights(tmp_path / "local")


@pytest.mark.parametrize("place", ["a number", "a number that becomes infinite", "the header", "a small file"])
def test_other_bytes_than_the_hub_has_recorded(place: str, serve: Serve, lens_source: Path, tmp_path: Path) -> None:
    """Nothing is published, and what was made of them is removed."""
    folder = shutil.copytree(lens_source, tmp_path / "repo")
    hub = serve(folder)
    file = folder / WEIGHTS
    header = read_header(file)
    content = bytearray(file.read_bytes())
    if place == "a number":
        content[-1000] ^= 1
    elif place == "a number that becomes infinite":
        start = header.data_start + header.tensors["img_in.weight"].start
        content[start : start + 4] = struct.pack("<f", float("inf"))
    elif place == "the header":
        content = content.replace(b"transformer_blocks.0", b"transformer_blocks.9", 1)
    if place == "a small file":
        edit_json(folder / "config.json", _name_or_path="x" * 7)
        hub.records = [
            record | {"size": (folder / "config.json").stat().st_size} if record["path"] == "config.json" else record
            for record in hub.records
        ]
    elif place == "the header":
        # It changes after it was examined.

        def change(handler: Handler) -> None:
            file.write_bytes(content)
            handler.piece(file)

        some_times(hub, WEIGHTS, change, 1, skip=1)
    else:
        file.write_bytes(content)
    text = refusal(lambda: convert(PLACE, tmp_path / "out"), errors.CorruptDownload)
    assert ("config.json" if place == "a small file" else WEIGHTS) in text
    assert ("header" in text) == (place == "the header")
    assert names_in(tmp_path) == ["repo", "shadows"]


def test_a_number_that_is_not_finite_in_the_source_itself(serve: Serve, lens_source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lens_source, tmp_path / "repo")
    tensors = load_file(folder / WEIGHTS)
    tensors["img_in.weight"][0, 0] = torch.inf
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    serve(folder)
    assert "img_in.weight" in refusal(lambda: convert(PLACE, tmp_path / "out"), errors.NonFiniteWeight)
    report = convert(PLACE, tmp_path / "out", options=ConvertOptions(allow_nonfinite=True))
    assert report.nonfinite == {"img_in.weight": 1}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (short, "no more come"),
        (status(500), "answers with status 500"),
        (status(403), "answers with status 403"),
    ],
)
def test_a_fault_that_stays_ends_the_run_and_the_next_one_continues(
    fault: Fault, reason: str, serve: Serve, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.hub.file_stream.FIRST_WAIT", 0.001)
    hub, notes = serve(sharded), Notes()
    last = max(file.name for file in sharded.glob("*.safetensors"))
    nothing: Fault = (lambda handler: handler.reply(b"", 206, piece_of(handler)[1])) if fault is short else fault
    some_times(hub, last, nothing, 1000, skip=1)
    text = refusal(lambda: convert(PLACE, tmp_path / "out", reporter=notes), errors.HubError)
    assert reason in text
    assert last in text
    assert any("is kept in .out.lensconv" in note for note in notes.texts)
    hub.faults.clear()
    hub.seen.clear()
    report = convert(PLACE, tmp_path / "out")
    assert report.resumed_tensors > 0
    # A file that was proven is not read again; its header is.
    assert asked(hub, min(file.name for file in sharded.glob("*.safetensors"))) == 1
    convert(sharded, tmp_path / "local")
    assert weights(tmp_path / "out") == weights(tmp_path / "local")


def test_a_branch_that_moved_after_an_interruption(serve: Serve, sharded: Path, tmp_path: Path) -> None:
    hub = serve(sharded)
    some_times(hub, "diffusion_pytorch_model-00003", status(401), 100, skip=1)
    refusal(lambda: convert(PLACE, tmp_path / "out"), errors.HubError)
    hub.faults.clear()
    other = "d" * 40
    hub.faults["/api/models/maker/model?"] = lambda handler: handler.reply(json.dumps({"sha": other}).encode())
    hub.faults[f"/tree/{other}"] = lambda handler: handler.tree("")
    hub.faults[f"/resolve/{other}/"] = lambda handler: handler.resolve(handler.path.rpartition(f"{other}/")[2])
    text = refusal(lambda: convert(PLACE, tmp_path / "out"), errors.OutputError)
    assert "the commit of the source" in text
    assert PINNED in text
    assert convert(PINNED, tmp_path / "out").resumed_tensors > 0


def test_a_repo_that_vanishes(serve: Serve, sharded: Path, tmp_path: Path) -> None:
    hub = serve(sharded)
    count = [0]

    def gone(handler: Handler) -> None:
        count[0] += 1
        if count[0] > len(list(sharded.glob("*.safetensors"))) + 3:
            handler.reply(b"", 404, {"X-Error-Code": "RepoNotFound"})
        else:
            handler.resolve(handler.path.rpartition(f"/{COMMIT}/")[2])

    hub.faults["/resolve/"] = gone
    assert "does not exist" in refusal(lambda: convert(PLACE, tmp_path / "out"), errors.HubError)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_corrupt", [False, True])
def test_killed_between_the_last_tensor_and_the_checksum(
    is_corrupt: bool,
    serve: Serve,
    lens_source: Path,
    lens_output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All tensors are finished, and nothing is left to read; the next run compares the sum before it publishes."""
    folder = shutil.copytree(lens_source, tmp_path / "repo")
    hub = serve(folder)
    if is_corrupt:
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[-1] ^= 1
        (folder / WEIGHTS).write_bytes(content)

    def killed(*_: object) -> None:
        raise errors.HubError("killed")

    with monkeypatch.context() as patched:
        patched.setattr("converter.hub.readers.StreamReader.finish", killed)
        refusal(lambda: convert(PLACE, tmp_path / "out"), errors.HubError)
    hub.seen.clear()
    if is_corrupt:
        refusal(lambda: convert(PLACE, tmp_path / "out"), errors.CorruptDownload)
        assert names_in(tmp_path) == ["repo", "shadows"]
        return
    convert(PLACE, tmp_path / "out")
    assert asked(hub, WEIGHTS) == 1, "the header"
    assert weights(tmp_path / "out") == weights(lens_output)
    assert "sha256" in manifest_of(tmp_path / "out")["components"][0]["source"]["files"][0]


def test_without_a_library_a_file_is_read_again_only_to_hash_it(
    serve: Serve, lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_hash, "_library", lambda: None)
    hub = serve(lens_source)
    some_times(hub, WEIGHTS, reset, 1, skip=1)
    some_times_after = hub.faults[f"/lfs/{WEIGHTS}"]

    def broken(handler: Handler) -> None:
        if asked(hub, WEIGHTS) > 2:
            status(401)(handler)
        else:
            some_times_after(handler)

    hub.faults[f"/lfs/{WEIGHTS}"] = broken
    refusal(lambda: convert(PLACE, tmp_path / "out"), errors.HubError)
    hub.faults.clear()
    notes = Notes()
    assert convert(PLACE, tmp_path / "out", reporter=notes).resumed_tensors > 0
    assert any("is read again from its beginning, to compute its checksum" in text for text in notes.texts)
    convert(lens_source, tmp_path / "local")
    assert weights(tmp_path / "out") == weights(tmp_path / "local")


@pytest.mark.parametrize("noted", [1 << 30, 1])
def test_a_state_that_cannot_be_used_is_as_none(
    noted: int, serve: Serve, lens_source: Path, lens_output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.hub.readers.NOTED_BYTES", noted)
    monkeypatch.setattr("converter.conversion.execution.jobs.PIECE_BYTES", 1 << 16)
    hub = serve(lens_source)
    some_times(hub, WEIGHTS, lambda handler: (reset, status(401))[asked(hub, WEIGHTS) > 2](handler), 9, skip=1)
    refusal(lambda: convert(PLACE, tmp_path / "out"), errors.HubError)
    hub.faults.clear()
    journal = tmp_path / ".out.lensconv" / "journal"
    first, *lines = map(json.loads, journal.read_text().splitlines())
    assert any("begun" in line for line in lines) == (noted == 1)
    for line in lines:
        line["stream"]["state"] = "00" * 112
    journal.write_text("".join(json.dumps(line) + "\n" for line in (first, *lines)))
    assert convert(PLACE, tmp_path / "out").resumed_tensors > 0
    assert weights(tmp_path / "out") == weights(lens_output)
    assert "sha256" in manifest_of(tmp_path / "out")["components"][0]["source"]["files"][0]


def test_other_components_continue_where_they_stopped(
    serve: Serve, tiny_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.conversion.release.companions._COPY_BYTES", 1 << 14)
    hub = serve(tiny_repo)
    name = "text_encoder/model.safetensors"
    size = (tiny_repo / name).stat().st_size
    some_times(hub, name, lambda handler: (short, status(401))[asked(hub, name) > 1](handler), 100)
    refusal(lambda: convert(PLACE, tmp_path / "out"), errors.HubError)
    hub.faults.clear()
    hub.seen.clear()
    before = hub.sent
    convert(PLACE, tmp_path / "out")
    assert asked(hub, f"transformer/{WEIGHTS}") == 1, "its header"
    left = (f"transformer/{WEIGHTS}", name)
    others = sum(len(content) for path, content in snapshot(tiny_repo).items() if path not in left)
    assert hub.sent - before < 0.51 * size + others + FIRST_BYTES
    assert (tmp_path / "out" / name).read_bytes() == (tiny_repo / name).read_bytes()


def test_another_component_with_other_bytes(serve: Serve, tiny_repo: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_repo, tmp_path / "repo")
    hub = serve(folder)
    file = folder / "vae" / WEIGHTS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    text = refusal(lambda: convert(PLACE, tmp_path / "out"), errors.HubError)
    assert f"vae/{WEIGHTS}" in text
    assert not (tmp_path / "out").exists()
    content[-1] ^= 1
    file.write_bytes(content)
    hub.seen.clear()
    assert convert(PLACE, tmp_path / "out").resumed_tensors > 0
    assert asked(hub, f"transformer/{WEIGHTS}") == 1, "its header; the converted weights were kept"


def test_a_damaged_beginning_of_another_component(serve: Serve, tiny_repo: Path, tmp_path: Path) -> None:
    """As after a power cut, which leaves a file of the right size without all of its bytes."""
    hub = serve(tiny_repo)
    hub.faults["/lfs/vae"] = status(401)
    refusal(lambda: convert(PLACE, tmp_path / "out"), errors.HubError)
    hub.faults.clear()
    name = "text_encoder/model.safetensors"
    (tmp_path / ".out.lensconv" / "release" / name).write_bytes(bytes(2000))
    assert convert(PLACE, tmp_path / "out").resumed_tensors > 0
    assert (tmp_path / "out" / name).read_bytes() == (tiny_repo / name).read_bytes()


def test_ctrl_c_while_the_server_stalls(serve: Serve, lens_source: Path, tmp_path: Path) -> None:
    hub = serve(lens_source)
    waiting = threading.Event()

    def stall(handler: Handler) -> None:
        content, headers = piece_of(handler)
        handler.send_response(206)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content[:100_000])
        waiting.set()
        time.sleep(6)
        handler.close_connection = True

    some_times(hub, WEIGHTS, stall, 1, skip=1)
    program = command("convert", PLACE, tmp_path / "out", "--quiet")
    process = subprocess.Popen(program, env={**os.environ, "HF_ENDPOINT": hub.url}, stderr=subprocess.DEVNULL)
    assert waiting.wait(30)
    time.sleep(0.5)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    # It does not wait for the limit of ten seconds.
    assert time.monotonic() - started < 4
    assert not (tmp_path / "out").exists()


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


@pytest.mark.long
@pytest.mark.parametrize(("noted", "kills"), [(40_000, 20), (1 << 30, 5)])
def test_killed_conversions_continue(
    noted: int, kills: int, serve: Serve, lens_source: Path, lens_output: Path, tmp_path: Path
) -> None:
    """Kills at any moment; what is read twice is at most what was not noted yet."""
    hub = serve(lens_source)
    slow_down(hub)
    environment = {**os.environ, "HF_ENDPOINT": hub.url}
    arguments = ["convert", PLACE, str(tmp_path / "out"), "--quiet", "--json"]
    program = f"""
import sys
from converter.conversion.execution import jobs
from converter.hub import readers
readers.NOTED_BYTES = {noted}
jobs.PIECE_BYTES = jobs.MINIMUM_PIECE_BYTES = 16384
from converter.__main__ import main
sys.argv = ["lensconv", *{arguments!r}]
main()
"""
    line = [sys.executable, "-c", program]
    # The first run lets SDNQ plan; later ones begin at once.
    subprocess.run(line, env=environment, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tmp_path / "out")
    header = read_header(lens_source / WEIGHTS)
    largest = max(entry.bytes for entry in header.tensors.values())
    generator = random.Random(kills)  # noqa: S311 - moments, not secrets
    hub.sent = runs = killed = 0
    while killed < kills:
        runs += 1
        process = subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(generator.uniform(0.4, 0.8 + 2.0 / kills))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (tmp_path / "out").exists():
            shutil.rmtree(tmp_path / "out")
            hub.sent = killed = runs = 0
            continue
        killed += 1
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed_tensors"] > 0
    assert weights(tmp_path / "out") == weights(lens_output)
    # Of each run: the header with the bytes that are read with it, what was not noted yet, and what was on its way.
    again = FIRST_BYTES + min(noted, largest) + 2 * 16384 + 4 * SENT_BYTES
    assert hub.sent <= header.file_bytes + (runs + 1) * again


def slow_down(hub: LoopbackHub) -> None:
    """Send weights in pieces with pauses, so that a kill finds them on their way."""

    def slowly(handler: Handler) -> None:
        content, headers = piece_of(handler)
        handler.send_response(206)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        for start in range(0, len(content), SENT_BYTES):
            piece = content[start : start + SENT_BYTES]
            try:
                handler.wfile.write(piece)
            except OSError:
                handler.close_connection = True
                return
            handler.hub.sent += len(piece)
            time.sleep(0.01)

    hub.faults["/lfs/"] = slowly


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
