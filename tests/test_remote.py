"""Repos on the Hub that are checked without being downloaded."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from safetensors.torch import load_file, save_file

from converter import AdapterChoice, convert, errors, plan, verify
from converter.checkpoint.header import TensorEntry, encode_header
from converter.conversion.options import ConvertOptions
from converter.hub.addresses import HubAddress
from converter.hub.client import bounded_hub
from converter.hub.records import MAXIMUM_FILE_BYTES, MAXIMUM_FILES
from converter.hub.remote import RemoteRepo
from converter.hub.retry import Retry, is_transient, wait_seconds
from converter.models.lens.layout import LensConfig, lens_tensors
from converter.publication.files import hash_files
from converter.publication.proof import ReadBack, prove_bytes, prove_records
from converter.schemas import load_schema
from tests.cases import check_cases
from tests.checkpoints import WEIGHTS, failed, write_holes
from tests.conftest import Lensconv, Serve, edit_json, list_file
from tests.loopback import COMMIT, GIT_BYTES, PINNED, PLACE, TOKEN, Handler, LoopbackHub, client_module, record_files
from tests.lora_files import factors, kohya, prefixed, write
from tests.pipelines import CONVERTED, NAMES, make_several
from tests.reporters import Notes
from tests.test_adapters_conversion import build, make_adapters, save_pipeline

#: The beginning of a Git LFS pointer.
POINTER = b"version https://git-lfs.github.com/spec/v1\n"


pytestmark = pytest.mark.usefixtures("plain_client")


@pytest.fixture
def release(release: Path) -> Path:
    """A release as the Hub has it."""
    (release / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    return release


def safe(error: errors.LensconvError) -> str:
    """What an error says, once it has been found to be safe to show."""
    text = f"{error.message} {error.hint}"
    assert not any(secret in text for secret in ("Secret", "lensconv-"))
    assert str(error) == error.message
    return text


def refusal(call: Callable[[], object], kind: type[errors.LensconvError] = errors.HubError) -> str:
    """What the error says that a call ends with."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    return safe(caught.value)


def found_by(hub: LoopbackHub) -> str:
    """What a check finds, with the files that it has read; or the error, with how often it was answered wrongly."""
    try:
        report = verify(PLACE)
    except errors.LensconvError as error:
        wrong = [path for _, path, _ in hub.seen if any(part in path for part in hub.faults)]
        return f"{type(error).__name__} {len(wrong)}: {safe(error)}"
    read = {path.rpartition(f"/{COMMIT}/")[2] for _, path, _ in hub.seen if "/resolve/" in path}
    return f"{report.class_name} {report.tensors}: {' '.join(sorted(read))}"


def test_no_wait_is_without_end(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import get_session, http_backoff  # type: ignore[attr-defined]

    def slow(handler: Handler) -> None:
        time.sleep(1.0)
        with suppress(OSError):
            handler.reply(b"")

    hub = serve(tmp_path)
    hub.faults["/silent"] = hub.faults["/api"] = slow
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    text = refusal(lambda: RemoteRepo.open(HubAddress("a/b"), retry=Retry(attempts=1)))
    assert "it does not answer in time" in text
    hub.faults["/busy"] = lambda handler: handler.reply(b"", 429, {"Retry-After": "31"})
    hub.faults["/api"] = lambda handler: handler.reply(b"", 503, {"Retry-After": "30"})
    # A program may have a client of its own.
    answers: list[int] = []
    hooks = {"response": [lambda response: answers.append(response.status_code)]}
    own = partial(client_module().Client, event_hooks=hooks)
    monkeypatch.setattr("huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY", own)
    close_session()
    before = get_session()
    with bounded_hub(29.6):
        assert os.environ["HF_XET_CLIENT_READ_TIMEOUT"] == "30s"
    with bounded_hub(0.2):
        assert os.environ["HF_XET_CLIENT_READ_TIMEOUT"] == "1s"
        with pytest.raises(client_module().ReadTimeout) as silent:
            get_session().get(f"{hub.url}/silent")
        assert is_transient(silent.value)
        # The client itself would sleep for that long here, and then ask again.
        with pytest.raises(HfHubHTTPError) as busy:
            http_backoff("GET", f"{hub.url}/busy", max_retries=1)
        assert wait_seconds(busy.value, 1) == 31
        assert [path for _, path, _ in hub.seen].count("/busy") == 1
        # What it does by itself in a moment is left to it.
        assert get_session().get(f"{hub.url}/api").status_code == 503
    assert "HF_XET_CLIENT_READ_TIMEOUT" not in os.environ
    assert get_session().timeout == before.timeout
    assert get_session().event_hooks == before.event_hooks
    assert answers == [429, 503]
    close_session()


def test_a_release_on_the_hub_is_sound(release: Path, serve: Serve, lensconv: Lensconv) -> None:
    hub = serve(release)
    hub.page = 5
    outcome = lensconv("verify", f"{PLACE}@refs/pr/1", "--recipe", "lens-uint4-static", "--against", release, "--json")
    assert outcome.code == 0, outcome
    result = outcome.result
    jsonschema.validate(result, load_schema("verify"))
    local = lensconv("verify", release, "--recipe", "lens-uint4-static", "--json").result
    added = {"hub", "against"}
    # Of other components, only names and sizes are known.
    detail = "text_encoder, vae: weights complete by "
    check = {"name": "components", "ok": True, "component": ""}
    assert {**check, "detail": f"{detail}name and size"} in result["checks"]
    local["checks"].remove({**check, "detail": f"{detail}their headers"})
    assert [check for check in result["checks"] if check["name"] not in {"components", *added}] == local["checks"]
    for key in local.keys() - {"checks", "other_components", "whole_bytes"}:
        assert result[key] == local[key]
    sizes = {f"vae/{WEIGHTS}": result["other_components"][1]["bytes"]}
    sizes["text_encoder/model.safetensors"] = result["other_components"][0]["bytes"]
    assert sizes == {name: (release / name).stat().st_size for name in sizes}
    assert added <= {check["name"] for check in result["checks"]}
    total = sum(record["size"] for record in hub.records)
    assert result["hub"] == {"place": PINNED, "bytes": total, "received_bytes": hub.sent}
    assert "/api/models/maker/model/revision/refs%2Fpr%2F1?" in hub.seen[0][1]
    # The weights stay where they are, and the token where it belongs.
    assert not any("vae/diffusion" in path or "text_encoder/model" in path for _, path, _ in hub.seen)
    hosts = {host.partition(":")[0]: authorization for host, _, authorization in hub.seen}
    assert hosts == {"127.0.0.1": f"Bearer {TOKEN}", "localhost": ""}
    # People see the address.
    shown = lensconv("verify", PLACE)
    assert (shown.code, shown.stdout) == (0, "")
    assert re.search(rf"{re.escape(PINNED)}: [\d.]+ kB of [\d.]+ MB read", " ".join(shown.stderr.split()))


def test_other_components(release: Path, serve: Serve) -> None:
    hub = serve(release)
    assert verify(PLACE, components=["vae"]).class_name == "AutoencoderKLFlux2"
    assert "transformer/" not in "".join(path for _, path, _ in hub.seen if WEIGHTS in path)
    text = refusal(lambda: verify(PLACE, components=["unet"]), errors.UsageError)
    assert f"unet is not a component of {PINNED}" in text


def test_plans(tiny_repo: Path, serve: Serve, lensconv: Lensconv) -> None:
    serve(tiny_repo)
    expected = plan(tiny_repo).to_dict()
    expected["source"] = {"place": PINNED, **expected["source"]}
    outcome = lensconv("plan", PLACE, "--json")
    jsonschema.validate(outcome.result, load_schema("plan"))
    assert outcome.result == plan(PLACE).to_dict()
    assert outcome.result["whole"]["bytes"] > expected["whole"]["bytes"]
    by_size = {"other_components", "whole", "memory"}
    remote, local = outcome.result["memory"], expected["memory"]
    assert (remote["exact"], local["exact"]) == (False, True)
    assert remote["result"]["by_component"][1] == local["result"]["by_component"][1]
    assert [expected[key] == outcome.result[key] for key in expected if key not in by_size] == [True] * 14
    assert f"Source: {PINNED}." in " ".join(lensconv("plan", PLACE).stderr.split())


def test_a_plan_with_adapters(serve: Serve, tmp_path: Path) -> None:
    """They are files of this machine; but kohya's names need the config of the UNet, whatever is converted."""
    models = build("sdxl")
    repo = save_pipeline(tmp_path / "repo", models, "StableDiffusionXLPipeline")
    choice, _ = make_adapters(tmp_path, "sdxl", models)
    tensors = prefixed(factors(models["text_encoder"], ["encoder.layers.0.mlp.fc1"]), "text_model")
    only = AdapterChoice(write(tmp_path / "kohya.safetensors", kohya(tensors, "lora_te1_")))
    hub = serve(repo)
    for components, given in ((), choice), (("text_encoder", "unet"), choice), (("text_encoder",), only):
        options = ConvertOptions(components, adapters=(given,))
        remote, local = plan(PLACE, options=options).to_dict(), plan(repo, options=options).to_dict()
        assert [remote[key] for key in ("components", "notes")] == [local[key] for key in ("components", "notes")]
        assert any("kohya" in note or "0.safetensors" in note for note in local["notes"]) == (not components)
        assert remote["peak_memory_bytes"] == local["peak_memory_bytes"]
    assert not any("kohya" in path or "0.safetensors" in path for _, path, _ in hub.seen)
    options = ConvertOptions(adapters=(only,))
    text = refusal(lambda: plan(PLACE, options=options), errors.AdapterError)
    assert text.startswith(f"{only.file}: has tensors for text_encoder only, and what is converted is unet")


def test_further_models_of_a_component(tiny_repo: Path, serve: Serve, tmp_path: Path) -> None:
    repo = shutil.copytree(tiny_repo, tmp_path / "repo")
    edit_json(repo / "model_index.json", controlnet=["diffusers", "MultiControlNetModel"])
    for name in ("controlnet", "controlnet_1"):
        shutil.copytree(repo / "vae", repo / name)
    serve(repo)
    assert plan(PLACE).other_components[-1].name == "controlnet_1"


def test_plans_of_a_variant(tiny_repo: Path, serve: Serve, tmp_path: Path) -> None:
    repo = shutil.copytree(tiny_repo, tmp_path / "repo")
    plain = repo / "transformer" / WEIGHTS
    halves = {name: tensor.half() for name, tensor in load_file(plain).items()}
    save_file(halves, plain.with_name("diffusion_pytorch_model.fp16.safetensors"), metadata={"format": "pt"})
    serve(repo)
    options = ConvertOptions(variant="fp16")
    assert plan(PLACE, options=options).source_bytes_by_dtype == plan(repo, options=options).source_bytes_by_dtype
    assert plan(PLACE).source_bytes == 2 * plan(PLACE, options=options).source_bytes
    assert "Its variants are: fp16." in refusal(
        lambda: plan(PLACE, options=ConvertOptions(variant="ema")), errors.UsageError
    )


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (None, errors.MissingInput, f"vae: contains no {WEIGHTS}, which its loader opens"),
        (POINTER, errors.MalformedCheckpoint, f"vae/{WEIGHTS}: has 43 bytes, too few for weights"),
    ],
)
def test_incomplete_pipelines(
    content: bytes | None,
    kind: type[errors.LensconvError],
    message: str,
    release: Path,
    tiny_repo: Path,
    serve: Serve,
) -> None:
    """Found without a byte of the weights; what the component itself holds can be verified alone."""
    repo = shutil.copytree(tiny_repo, release.parent / "repo")
    for folder in (repo, release):
        (folder / "vae" / WEIGHTS).unlink()
        if content:
            (folder / "vae" / WEIGHTS).write_bytes(content)
    (release / "lensconv_manifest.json").unlink()
    serve(repo)
    assert f"{PINNED}/{message}" in refusal(lambda: plan(PLACE), kind)
    hub = serve(release)
    assert failed(verify(PLACE)) == {"components": f"{PINNED}/{message}"}
    hub.seen.clear()
    assert verify(PLACE, components=["transformer"]).ok
    assert not any("/vae/" in path for _, path, _ in hub.seen)


def test_sixteen_gigabytes(tmp_path: Path, serve: Serve) -> None:
    """The source of Lens: its true header, and a hole where the weights would be."""
    folder = tmp_path / "repo" / "transformer"
    folder.mkdir(parents=True)
    write_holes(folder / WEIGHTS, [("F32", name, shape) for name, shape in lens_tensors(LensConfig())])
    (folder / "config.json").write_text('{"_class_name": "LensTransformer2DModel"}')
    (folder.parent / "model_index.json").write_text('{"transformer": ["diffusers", "LensTransformer2DModel"]}')
    hub = serve(folder.parent)
    report = verify(PLACE)
    assert (report.tensors, report.total_bytes) == (1264, 16_416_900_608)
    assert report.hub["received_bytes"] == hub.sent < 400_000
    assert "neither config.json nor quantization_config.json" in failed(report)["config"]
    assert report.checks[-1].detail == "2 files that were read have the checksums that the Hub records"
    assert len([path for _, path, _ in hub.seen if path.startswith("/lfs/")]) == 1


def test_differences_from_the_manifest(release: Path, serve: Serve) -> None:
    (release / "docs" / "en").mkdir(parents=True)
    (release / "docs" / "en" / "README.md").write_text("# Model\n")
    hub = serve(release)
    report = verify(PLACE)
    assert (report.ok, report.notes) == (True, ("the manifest does not list docs/en/README.md",))
    # Another sha256 at the same size, of a file in LFS.
    weights = next(record for record in hub.records if record["path"] == "vae/" + WEIGHTS)
    weights["lfs"]["oid"] = "1" * 64
    assert failed(verify(PLACE)) == {"hub": f"vae/{WEIGHTS} has another sha256 than the manifest says"}
    hub.records.remove(weights)
    assert failed(verify(PLACE))["hub"] == f"vae/{WEIGHTS} is missing"
    # A small file that git has.
    file = release / "scheduler" / "scheduler_config.json"
    content, hub.records = file.read_bytes(), record_files(release)
    file.write_bytes(content.swapcase())
    assert "does not have the checksum that the Hub records" in failed(verify(PLACE))["hub"]
    hub.records = record_files(release)
    assert failed(verify(PLACE)) == {"hub": "scheduler/scheduler_config.json has another sha256 than the manifest says"}
    file.write_bytes(content + b" ")
    hub.records = record_files(release)
    said = f"scheduler/scheduler_config.json has {len(content) + 1} bytes, should have {len(content)}"
    assert failed(verify(PLACE)) == {"hub": said, "manifest": said}
    (release / "lensconv_manifest.json").write_text("{}")
    hub.records = record_files(release)
    assert failed(verify(PLACE))["manifest"].startswith(f"{PINNED}/lensconv_manifest.json: is not a lensconv manifest")


def test_small_files_beyond_the_budget(release: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.verification.remote.HASHED_BYTES", GIT_BYTES)
    # First by its name, but larger than all others, which are read.
    list_file(release, "LICENSE", bytes(GIT_BYTES))
    serve(release)
    report = verify(PLACE)
    assert report.ok
    assert ", 1 of them compared by size alone" in str(report.checks)


def test_differences_from_a_release_on_disk(
    release: Path, tiny_release: Path, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = serve(release)
    notes = Notes()
    assert "are the same on the Hub and on disk" in str(verify(PLACE, against=tiny_release, reporter=notes).checks)
    size = sum(file.stat().st_size for file in tiny_release.rglob("*") if file.is_file())
    assert [(shown.label, shown.total, shown.done) for shown in notes.shown] == [("hashing", size, size)]
    other = shutil.copytree(tiny_release, tmp_path / "other")
    # Files of others may be there, unless they would be loaded.
    (release / "more.md").touch()
    hub.records = record_files(release)
    report = verify(PLACE, against=other)
    assert "; other files in the repo: 1" in str(report.checks)
    assert (report.ok, report.notes) == (True, ("the manifest does not list more.md",))
    (release / "more.md").rename(release / "vae" / "model.fp16.safetensors")
    hub.records = record_files(release)
    said = "vae/model.fp16.safetensors may be loaded in place of the release's weights"
    assert failed(verify(PLACE, against=other)) == {"against": said}
    (release / "vae" / "model.fp16.safetensors").unlink()
    hub.records = record_files(release)
    (other / "more.txt").touch()
    assert failed(verify(PLACE, against=other)) == {"against": "more.txt is not on the Hub"}
    (other / "more.txt").unlink()
    (other / ".lensconv").mkdir()
    (other / ".lensconv" / "stamps.json").write_text("{}")
    for name in ("transformer/" + WEIGHTS, "model_index.json"):
        content = (other / name).read_bytes()
        (other / name).write_bytes(content[:-1] + b"?")
        assert failed(verify(PLACE, against=other)) == {"against": f"{name} has other bytes on the Hub than on disk"}
        (other / name).write_bytes(content[:-1])
        assert "bytes on the Hub" in failed(verify(PLACE, against=other))["against"]
        (other / name).unlink()
        assert f"{name} is on the Hub and not in" in failed(verify(PLACE, against=other))["against"]
        (other / name).write_bytes(content)
    # No file of git is so long.
    list_file(release, "LICENSE", bytes(GIT_BYTES))
    hub.records = record_files(release)
    (other / "LICENSE").write_bytes(bytes(GIT_BYTES))
    for longest, is_wrong in ((GIT_BYTES, False), (GIT_BYTES - 1, True)):
        monkeypatch.setattr("converter.verification.remote.MAXIMUM_GIT_BYTES", longest)
        assert ("LICENSE has other bytes" in failed(verify(PLACE, against=other))["against"]) is is_wrong
    hub.seen.clear()
    refusal(lambda: verify(PLACE, against=tmp_path / "nothing"), errors.MissingInput)
    refusal(lambda: verify(PLACE, against=Path(PLACE.upper())), errors.UsageError)
    assert hub.seen == []


def test_options_that_need_the_weights(lensconv: Lensconv) -> None:
    for options in (["--load"], ["--checksums"], ["--fail-under-sqnr", "10"]):
        outcome = lensconv("verify", PLACE, *options, "--json")
        assert outcome.code == 2
        assert "hf download" in outcome.result["error"]["hint"]


def write_weights(file: Path, *names: str) -> None:
    """Write a weight file with one number for each name."""
    entries = [TensorEntry(name, "F32", (1,), 4 * index, 4 * index + 4) for index, name in enumerate(names)]
    file.write_bytes(encode_header(entries, {"format": "pt"}) + bytes(4 * len(names)))


def test_other_layouts(tmp_path: Path, serve: Serve) -> None:
    """Each case is a repo: files with these tensors or texts, or with a length of the header and no more."""

    def outcome(files: dict[str, list[str] | str | int]) -> str:
        shutil.rmtree(tmp_path / "repo", ignore_errors=True)
        (tmp_path / "repo").mkdir()
        for name, content in files.items():
            (tmp_path / "repo" / name).parent.mkdir(exist_ok=True)
            if isinstance(content, list):
                write_weights(tmp_path / "repo" / name, *content)
            else:
                header = content.to_bytes(8, "little") + bytes(9000) if isinstance(content, int) else content.encode()
                (tmp_path / "repo" / name).write_bytes(header)
        return found_by(serve(tmp_path / "repo"))

    check_cases("remote_layouts.jsonl", outcome)


def test_long_headers_take_a_second_request(tmp_path: Path, serve: Serve) -> None:
    file = tmp_path / "model.safetensors"
    write_weights(file, *(f"a name that takes some space {number}" for number in range(5000)))
    size = file.stat().st_size
    with file.open("r+b") as stream:
        header = int.from_bytes(stream.read(8), "little") + 8
    hub = serve(file.parent)
    assert header > 320 * 1024
    assert verify(PLACE).tensors == 5000
    assert header < hub.sent < header + 1000 < size


def git_record(path: str, size: Any = 0) -> dict[str, Any]:
    """A small file as the Hub lists it."""
    return {"type": "file", "path": path, "oid": "e" * 40, "size": size}


def test_records_that_cannot_be(tmp_path: Path, serve: Serve) -> None:
    """Each case has a record or two, as far as they differ from that of a small file."""

    def outcome(*records: dict[str, Any]) -> str:
        hub = serve(tmp_path)
        hub.records = [*({**git_record("a"), **record} for record in records), git_record("model.safetensors", 9)]
        return found_by(hub)

    check_cases("remote_records.jsonl", outcome)


def test_listings_that_are_long(tmp_path: Path, serve: Serve) -> None:
    hub, path = serve(tmp_path), "/".join(["a" * 255] * 3 + ["a" * 254, "a"])
    for record, said in (
        (git_record(path), "contains no safetensors weights"),
        (git_record(f"{path}a"), "is not a valid path"),
        (git_record("\ud800"), "is not valid Unicode"),
        *(("text", "lists a file without a path"), (git_record("a") | {"oid": None}, "without an id in git")),
        *((git_record("a") | {"lfs": lfs}, "without a sha256") for lfs in ("x", {"oid": 1})),
        (git_record("a") | {"lfs": {"oid": "1" * 64}}, "contains no safetensors weights"),
        (git_record("big.bin", MAXIMUM_FILE_BYTES), "may contain a pickle"),
    ):
        hub.records = [record]
        assert said in found_by(hub)
    hub.page = 100_000
    for number, said in (
        (MAXIMUM_FILES, "contains no safetensors weights"),
        (MAXIMUM_FILES + 1, "more than 20000 files"),
    ):
        hub.records = [git_record(str(index)) for index in range(number)]
        assert said in found_by(hub)
    link = {"Link": f"<{hub.url}/x?cursor=1>; rel=next"}

    def endless(handler: Handler) -> None:
        records = [git_record(f"{len(hub.seen)}-{number}") for number in range(1000)]
        handler.reply(json.dumps(records).encode(), headers=link)

    hub.faults["/tree/"] = endless
    assert "more than 20000 files" in found_by(hub)
    hub.faults["/tree/"] = lambda handler: handler.reply(b"[]", headers=link)
    assert "list of files could not be understood" in found_by(hub)


def test_answers_that_make_no_sense(lens_output: Path, serve: Serve) -> None:
    """Each case is an answer to all requests for a path, some of a text many times over."""

    def outcome(part: str, text: str, times: int = 1, status: int = 200, headers: dict[str, str] | None = None) -> str:
        def answer(handler: Handler) -> None:
            found = {name: value.replace("<path>", handler.path) for name, value in (headers or {}).items()}
            handler.reply((text.replace("<token>", TOKEN) * times).encode("latin-1"), status, found)

        hub = serve(lens_output)
        hub.faults[part] = answer
        return found_by(hub)

    check_cases("remote_answers.jsonl", outcome)


@pytest.mark.parametrize(
    ("part", "status", "location", "told"),
    [
        (
            "/resolve/",
            302,
            "http://localhost:9/x",
            "localhost cannot be reached: it refuses the connection. Allow localhost",
        ),
        (
            "/resolve/",
            302,
            "http://cdn.invalid/x",
            "cdn.invalid cannot be reached: its host name was not found. Allow cdn",
        ),
        ("/lfs/", 403, "", "localhost answers with status 403. Allow localhost in the firewall and the proxy."),
        ("/lfs/", 404, "", "localhost answers with status 404. Allow localhost in the firewall and the proxy."),
        ("/lfs/", 503, "", "localhost answers with status 503. Try again later."),
        ("/lfs/", 429, "", "localhost answers with status 429. Try again later."),
        ("/lfs/", 408, "", "localhost answers with status 408. Try again later."),
        ("/lfs/", 200, "", "localhost sends 7. Check HF_ENDPOINT, and the settings of proxy and firewall."),
    ],
)
def test_a_host_of_files_that_is_blocked_is_named(
    part: str, status: int, location: str, told: str, lens_output: Path, serve: Serve
) -> None:
    hub = serve(lens_output)
    hub.faults[part] = lambda handler: handler.reply(b"blocked", status, {"Location": location} if location else {})
    with pytest.raises(errors.HubError) as caught:
        verify(PLACE)
    assert f"the Hub's file host {told}" in caught.value.with_hint


def test_pieces_that_break_off_are_asked_for_again(lens_output: Path, serve: Serve) -> None:
    hub = serve(lens_output)
    broken = []

    def break_off(handler: Handler) -> None:
        broken.append(handler.path)
        if len(broken) > 2:
            del hub.faults[f"/lfs/{WEIGHTS}"]
        asked = handler.headers["Range"].removeprefix("bytes=")
        found = {"Content-Range": f"Bytes {asked}/{(lens_output / WEIGHTS).stat().st_size}"}
        handler.reply(b"x", 206, found, length=1 + int(asked.partition("-")[2]))
        handler.close_connection = True

    hub.faults[f"/lfs/{WEIGHTS}"] = break_off
    assert verify(PLACE).ok
    assert len(broken) == 3


def test_a_server_without_ranges_sends_no_more_than_is_read(tmp_path: Path, serve: Serve) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        start = stream.write(encode_header([TensorEntry("a", "U8", (10**11,), 0, 10**11)], {"long": "x" * 500_000}))
        stream.truncate(start + 10**11)
    hub = serve(file.parent)

    def everything(handler: Handler) -> None:
        handler.send_response(200)
        # Some do not say how long it is.
        if "=0-" in handler.headers["Range"]:
            handler.send_header("Content-Length", str(file.stat().st_size))
        handler.end_headers()
        handler.close_connection = True
        with file.open("rb") as stream:
            # Whoever does not stop fails at the end of this, not at the end of the memory.
            while hub.sent < 50_000_000 and (chunk := stream.read(1 << 16)):
                try:
                    handler.wfile.write(chunk)
                except OSError:
                    return
                hub.sent += len(chunk)

    hub.faults["/lfs/"] = everything
    report = verify(PLACE)
    assert report.total_bytes == 10**11
    assert report.hub["received_bytes"] < 2_000_000


def test_a_release_is_proved_by_what_the_hub_serves(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs, size = tmp_path / "ours", tmp_path / "theirs", 9 << 20
    ours.mkdir()
    for name, content in (("a.txt", b"aaa"), ("long.bin", bytes(size)), ("z.txt", b"z")):
        (ours / name).write_bytes(content)
    serve(shutil.copytree(ours, theirs))
    notes = Notes()
    files = hash_files(ours, ["a.txt", "long.bin", "z.txt"], notes)
    remote = RemoteRepo.open(HubAddress("maker/model"))
    prove_records(files, remote)
    assert prove_bytes(files, remote, everything=False, reporter=notes) == ReadBack(3, 0, 4 + size)
    shown = [(progress.label, progress.total, progress.done) for progress in notes.shown]
    assert shown == [("hashing", 4 + size, 4 + size), ("reading back", 4 + size, 4 + size)]
    # Short files are read whole, even beyond the limit.
    for whole in (3 + size, 3):
        monkeypatch.setattr("converter.publication.proof._WHOLE_BYTES", whole)
        assert prove_bytes(files, remote, everything=False) == ReadBack(2, 1, 4 + (8 << 20))
    for place, said in ((0, "between 0 and 1048576;"), (size - 1, "between 8388608 and 9437184;")):
        (theirs / "long.bin").write_bytes(bytes(place) + b"x" + bytes(size - place - 1))
        assert said in refusal(lambda: prove_bytes(files, remote, everything=False))
    (theirs / "long.bin").write_bytes(bytes(4 << 20) + b"x" + bytes(5 << 20)[1:])
    monkeypatch.setattr("converter.publication.proof._STEP_BYTES", 4 << 20)
    assert "between 4194304 and 8388608;" in refusal(lambda: prove_bytes(files, remote, everything=True))
    # Both sides have it, and yet it is not what the release lists.
    shutil.copy(theirs / "long.bin", ours)
    text = refusal(lambda: prove_bytes(files, remote, everything=True))
    assert "/long.bin: has another sha256 than the manifest says Publish it again." in text
    (ours / "a.txt").write_text("bbb")
    for _ in range(2):
        text = refusal(lambda: prove_bytes(files, remote, everything=False), errors.ReleaseError)
        assert "a.txt: has changed since it was examined; the commit could not be checked" in text
        (ours / "a.txt").unlink(missing_ok=True)
    for name, change in (("a.txt", b"AAA"), ("long.bin", b"short"), ("more.txt", b""), ("z.txt", None)):
        (theirs / name).unlink(missing_ok=True) if change is None else (theirs / name).write_bytes(change)
    serve(theirs)
    remote = RemoteRepo.open(HubAddress("maker/model"))
    text = refusal(lambda: prove_records(files, remote, ["more.txt", "gone.txt"]))
    assert text == (
        f"{PINNED}: differs from the release: a.txt has another checksum on the Hub; long.bin has 5 bytes on the Hub, "
        "and 9437184 here; z.txt is missing on the Hub; and 1 more Publish it again."
    )
    text = refusal(lambda: prove_records(files[1:2], remote, ["a.txt"]))
    assert "and 9437184 here; a.txt should not be on the Hub Publish" in text


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://user:{TOKEN}@127.0.0.1:9")
    assert "the Hub cannot be reached: it refuses the connection" in refusal(lambda: RemoteRepo.open(HubAddress("a/b")))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://host:port")
    assert "its address is malformed" in refusal(lambda: RemoteRepo.open(HubAddress("a/b")))


def test_a_release_with_several_quantized_components(tmp_path: Path, serve: Serve, lensconv: Lensconv) -> None:
    source, release = make_several(tmp_path / "source"), tmp_path / "release"
    convert(source, release, options=ConvertOptions(components=NAMES))
    hub = serve(release)
    outcome = lensconv("verify", PLACE, "--against", release, "--json")
    result = outcome.result
    assert outcome.code == 0, [check for check in result["checks"] if not check["ok"]]
    jsonschema.validate(result, load_schema("verify"))
    local = lensconv("verify", release, "--json").result
    assert [result[key] for key in ("components", "families", "notes")] == [
        local[key] for key in ("components", "families", "notes")
    ]
    assert [component["name"] for component in result["components"]] == [*NAMES]
    shown = [check for check in result["checks"] if check["name"] not in ("components", "hub", "against")]
    assert shown == [check for check in local["checks"] if check["name"] != "components"]
    assert [check["component"] for check in result["checks"] if check["name"] == "config"] == [*NAMES]
    # Damage of the last one, which the manifest does not list so.
    weights = release / "text_encoder_2" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    hub = serve(release)
    assert failed(verify(PLACE)) == {
        "hub": "text_encoder_2/model.safetensors has another sha256 than the manifest says"
    }
    # Of components that were chosen, no others are read.
    report = verify(PLACE, components=["text_encoder", "transformer_2"])
    assert [component.name for component in report.components] == ["transformer_2", "text_encoder"]
    hub = serve(release)
    verify(PLACE, components=["text_encoder"])
    read = {path.partition(f"/{COMMIT}/")[2] for _, path, _ in hub.seen if "/resolve/" in path}
    assert {path for path in read if path.endswith(".safetensors")} == {"text_encoder/model.safetensors"}


def test_a_packed_denoiser_is_examined_although_no_config_says_so(tmp_path: Path, serve: Serve) -> None:
    """As on disk: its header decides, if another component is quantized and no manifest describes it."""
    source = make_several(tmp_path / "source")
    for names, quantized in ((("transformer", "text_encoder"), True), (("text_encoder",), False)):
        release = tmp_path / names[0]
        convert(source, release, options=ConvertOptions(components=names))
        (release / "lensconv_manifest.json").unlink()
        for name in ("config.json", "quantization_config.json"):
            (release / "transformer" / name).unlink(missing_ok=True)
        shutil.copy(source / "transformer" / "config.json", release / "transformer")
        serve(release)
        report = verify(PLACE)
        assert [component.name for component in report.components] == [*names]
        assert ("transformer: config" in {check.title for check in report.checks if not check.ok}) == quantized
        local = verify(release)
        assert local.components == report.components
        assert local.ok == report.ok == (not quantized)


def test_plans_of_several_components(
    tmp_path: Path, serve: Serve, lensconv: Lensconv, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_several(tmp_path / "source")
    serve(source)
    sizes = {name: (source / name / "model.safetensors").stat().st_size for name in NAMES[2:]}
    small, large = sorted(sizes, key=sizes.__getitem__)
    monkeypatch.setattr("converter.conversion.choosing.LEAST_TEXT_ENCODER_BYTES", sizes[small])
    outcome = lensconv("plan", PLACE, "--component", "all", "--component", "vae", "--json")
    assert outcome.code == 0, outcome
    jsonschema.validate(outcome.result, load_schema("plan"))
    local = lensconv("plan", source, "--component", "vae", "--component", "all", "--json").result
    assert outcome.result["components"] == local["components"]
    names = [component["name"] for component in outcome.result["components"]]
    assert names == ["transformer", "transformer_2", large, "vae"]
    assert outcome.result["notes"] == local["notes"]
    assert f"{small} ({CONVERTED[small]}) stays as it is; it is small" in outcome.result["notes"]


def test_folders_of_killed_processes_are_removed(serve: Serve, release: Path) -> None:
    serve(release)
    folder = Path(tempfile.gettempdir())
    for name, age in (("killed", 100), ("new", 1), ("used", 100)):
        (folder / f"lensconv-temporary-{name}").mkdir()
        (folder / f"lensconv-temporary-{name}" / "x").touch()
        moment = time.time() - age
        os.utime(folder / f"lensconv-temporary-{name}", (moment, moment))
    # Other folders have other owners.
    (folder / "lensconv-hub-x").mkdir()
    os.utime(folder / "lensconv-hub-x", (0, 0))
    used = os.open(folder / "lensconv-temporary-used", os.O_RDONLY)
    fcntl.flock(used, fcntl.LOCK_EX)
    verify(PLACE)
    assert {file.name for file in folder.iterdir()} == {
        "lensconv-temporary-new",
        "lensconv-temporary-used",
        "lensconv-hub-x",
    }
    os.close(used)
    for name in ("temporary-new", "temporary-used", "hub-x"):
        shutil.rmtree(folder / f"lensconv-{name}")
