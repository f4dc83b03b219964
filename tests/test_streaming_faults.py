"""Conversions from the Hub that are interrupted, and servers that fail or send something else."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, convert, errors
from converter.checkpoint import running_hash
from converter.checkpoint.header import read_header
from converter.hub.shadow import FIRST_BYTES
from tests.conftest import Serve, command, edit_json, names_in, snapshot
from tests.loopback import COMMIT, PINNED, PLACE, Handler
from tests.reporters import Notes
from tests.streams import (
    SENT_BYTES,
    WEIGHTS,
    Fault,
    asked,
    ignored_range,
    manifest_of,
    piece_of,
    refusal,
    reset,
    short,
    slow_down,
    some_times,
    status,
    weights,
)

pytestmark = pytest.mark.usefixtures("plain_client")


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
