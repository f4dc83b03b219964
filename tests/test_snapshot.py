"""Pipeline repos on the Hub that are downloaded into the cache, and drawn with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from converter import errors
from converter.console import SILENT, readable_size
from converter.hub.cached import cache_folder
from converter.hub.snapshot import local_folders
from converter.measurement.benchmark.node_repos import SharedRepo
from converter.measurement.benchmark.subjects import open_subjects
from converter.measurement.generation.places import pipeline_folders
from converter.synthesis.synthesize import synthesize
from tests.benches import DRAWING, SUITE
from tests.conftest import Lensconv, command, run_python, snapshot
from tests.faulty_hub import FaultyHub
from tests.hubs import ask, commit, make_repo, run_client, without_progress
from tests.reporters import Notes

REPO = "alice/Lens-Turbo"
PLACE = f"hf://{REPO}"
WEIGHTS = "diffusion_pytorch_model.safetensors"
#: Files of a repo that no loader opens, or that hold the same weights in other formats.
OTHERS = (
    *("README.md", "LICENSE", "preview.png", "whole.safetensors", "images/a.png", "vae/.DS_Store"),
    *("vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin", "vae/model.onnx"),
    *("transformer/adapter_model.bin", "text_encoder/model.safetensors.index.fp16.json"),
)
#: Writes the folders of places, and how many bytes were downloaded.
_DOWNLOAD = """
import sys
from converter.measurement.benchmark.node_repos import SharedRepo
from converter.measurement.benchmark.subjects import open_subjects
from converter.measurement.generation.places import pipeline_folders
from tests.reporters import Notes
notes = Notes()
with pipeline_folders(sys.argv[1:], notes) as folders:
    print(*folders, *(shown.done for shown in notes.shown), sep="\\n")
"""


class Published(NamedTuple):
    """The tiny pipeline on the Hub, with files that nobody needs."""

    hub: FaultyHub
    commit: str
    sizes: dict[str, int]
    """Of the files that are needed, by path."""


@pytest.fixture(scope="module")
def published(hub: FaultyHub, tiny_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = shutil.copytree(tiny_repo, tmp_path_factory.mktemp("published") / "repo")
    sizes = {name: len(content) for name, content in snapshot(folder).items()}
    for number, name in enumerate(OTHERS):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(bytes([number]) * 3000)
    return Published(hub, publish(hub, folder, REPO, tmp_path_factory.mktemp("home")), sizes)


def publish(hub: FaultyHub, folder: Path, repo: str, home: Path, *, xet: bool = False) -> str:
    """Upload a folder to a new repo; returns the commit."""
    program = f"""
api.create_repo("{repo}")
found["commit"] = api.upload_folder(repo_id="{repo}", folder_path=sys.argv[1], ignore_patterns=[]).oid
"""
    return str(run_client(hub, home, program, folder, xet=xet)["commit"])


@pytest.fixture(autouse=True)
def _client(hub: FaultyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the client in this process use the Hub of the tests, with a new cache, over LFS."""
    from huggingface_hub import close_session, constants

    for name, text in hub.environment({}, tmp_path / "home", xet=False).items():
        monkeypatch.setenv(name, text)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.endpoint)
    for name, value in (
        ("ENDPOINT", hub.endpoint),
        ("HUGGINGFACE_CO_URL_TEMPLATE", template),
        ("HF_HUB_CACHE", str(tmp_path / "home" / "hub")),
        ("HF_HUB_DISABLE_XET", True),
        ("HF_HUB_DISABLE_TELEMETRY", True),
    ):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("converter.hub.retry.FIRST_WAIT", 0.001)
    hub.clear_faults()
    hub.forget_requests()
    close_session()
    yield
    close_session()


def download(*places: str) -> tuple[Path, list[str]]:
    """The first of the folders, and what was said."""
    notes = Notes()
    with pipeline_folders(places, notes) as folders:
        return folders[0], notes.texts


def refusal(place: str, kind: type[errors.LensconvError]) -> str:
    """What the error says that a download ends with."""
    with pytest.raises(kind) as caught, pipeline_folders([place]):
        pass
    assert type(caught.value) is kind
    return f"{caught.value.message}. {caught.value.hint}"


def paths(hub: FaultyHub) -> list[str]:
    """What was asked for."""
    return [f"{request['method']} {request['path']}" for request in hub.requests()]


def test_only_what_loaders_open_is_downloaded_and_only_once(published: Published) -> None:
    hub, pinned = published.hub, f"{PLACE}@{published.commit}"
    folder, said = download(PLACE)
    assert {name: len(content) for name, content in snapshot(folder).items()} == published.sizes
    size = sum(published.sizes.values()) / 1e6
    assert said == [f"{pinned}: {size:.1f} MB in 12 files; downloading {size:.1f} MB to {cache_folder()}"]
    hub.forget_requests()
    again = download(PLACE)
    assert again == (folder, [f"{pinned}: {size:.1f} MB in 12 files, all of them in the cache, {cache_folder()}"])
    # Which commit the branch is, and which files that has, page by page.
    assert set(paths(hub)) == {f"GET /api/models/{REPO}", f"GET /api/models/{REPO}/tree/{published.commit}"}
    # Another commit has the same files.
    move(hub)
    hub.forget_requests()
    other, said = download(PLACE)
    assert other.name != published.commit
    assert "all of them in the cache" in said[0]
    assert snapshot(other) == snapshot(folder)
    assert sum(request["sent"] for request in hub.requests()) < 20_000
    # A part of them.
    for name in (f"vae/{WEIGHTS}", "vae/config.json"):
        (folder / name).resolve().unlink()
    _, said = download(pinned)
    assert f"; downloading {readable_size(published.sizes['vae/' + WEIGHTS] + 735)} to " in said[0]
    assert " of them in the cache" in said[0]
    assert snapshot(folder) == snapshot(other)


def move(hub: FaultyHub) -> None:
    hub.fault("move_head", repo=REPO)


def test_a_branch_that_moves_changes_nothing(published: Published) -> None:
    published.hub.fault("move_head", path=f"/tree/{head(published.hub)}", repo=REPO, times=1)
    before = head(published.hub)
    folder, _ = download(PLACE)
    assert folder.name == before != head(published.hub)


def head(hub: FaultyHub, repo: str = REPO) -> str:
    return str(ask(hub, "GET", f"/api/models/{repo}/revision/main").content["sha"])


def test_without_requests(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = published.hub
    current = head(hub)
    offline = "HF_HUB_OFFLINE forbids requests to the Hub. Unset HF_HUB_OFFLINE."
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refusal(PLACE, errors.HubError) == f"{PLACE}: is not in the cache, and {offline}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder, _ = download(PLACE)
    hub.forget_requests()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for place in (PLACE, f"{PLACE}@main", f"{PLACE}@{current}"):
        found, said = download(place)
        assert (found, said[0].startswith(f"{PLACE}@{current}: ")) == (folder, True)
    assert hub.requests() == []
    assert refusal(f"{PLACE}@next", errors.HubError) == f"{PLACE}@next: is not in the cache, and {offline}"
    for name, text in (
        ("tokenizer/tokenizer.json", f"{PLACE}@{current}: the cache lacks 1 of 12 files, and {offline}"),
        ("vae/config.json", f"{PLACE}@{current}/vae/config.json: {offline}"),
    ):
        (folder / name).resolve().unlink()
        assert refusal(PLACE, errors.HubError) == text
    (folder.parents[1] / "refs" / "main").write_text("../../x")
    assert refusal(PLACE, errors.HubError) == f"{PLACE}: is not in the cache, and {offline}"


def test_a_full_disk(published: Published, lensconv: Lensconv, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    size = sum(published.sizes.values())

    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(size - 5))
    outcome = lensconv("generate", PLACE, "--prompt", "a kettle", "--out", tmp_path / "a.png", "--json")
    assert outcome.code == 3
    assert outcome.result["error"]["message"].startswith(f"{cache_folder()}: the download needs ")
    assert outcome.result["error"]["message"].endswith(": 5 bytes too few")
    assert not cache_folder().exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(size))
    download(PLACE)


def test_repos_that_are_refused_before_anything_is_downloaded(published: Published) -> None:
    hub = published.hub
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    video = {"_class_name": "WanPipeline"}
    lens = {"_class_name": "LensPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    large, unet = bytes(3000), {"unet/config.json": b'{"_class_name": "UNet2DConditionModel"}'}
    cases: dict[str, tuple[dict[str, bytes], type[errors.LensconvError], str]] = {
        "nothing": (
            {"README.md": b"#"},
            errors.UnsupportedCheckpoint,
            ": is not a pipeline repo, it has no model_index",
        ),
        "broken": ({"model_index.json": b"[]"}, errors.MalformedCheckpoint, "/model_index.json: "),
        "modular": ({"modular_model_index.json": b"{}"}, errors.UnsupportedCheckpoint, ": is a modular pipeline"),
        "incomplete": ({"model_index.json": json.dumps(index).encode()}, errors.MalformedCheckpoint, "/unet: no such"),
        "video": ({"model_index.json": json.dumps(video).encode()}, errors.LensconvError, "Pipeline"),
        "other": ({"model_index.json": json.dumps(lens).encode()}, errors.UnsupportedCheckpoint, "scheduler is None"),
    }
    for name, (files, kind, said) in cases.items():
        repo = make_repo(hub, name)
        assert commit(hub, repo, files).status == 200
        with pytest.raises(errors.LensconvError) as caught, pipeline_folders([f"hf://{repo}"]):
            pass
        assert isinstance(caught.value, kind), caught.value
        assert caught.value.message.startswith(f"hf://{repo}@")
        assert said in caught.value.message
        assert caught.value.exit_code == 2
    # Weights that may contain pickles.
    repo = make_repo(hub, "pickles")
    files = {"model_index.json": json.dumps(index).encode(), **unet, "unet/diffusion_pytorch_model.bin": large}
    assert commit(hub, repo, files).status == 200
    with pytest.raises(errors.UnsupportedCheckpoint) as refused, local_folders([f"hf://{repo}"], lambda _: ()):
        pass
    assert f"@{head(hub, repo)}/unet/diffusion_pytorch_model.bin: may contain a pickle" in refused.value.message
    assert not (cache_folder() / "models--alice--pickles" / "blobs").exists()
    assert not any("diffusion_pytorch_model.bin" in path for path in paths(hub))


def test_repos_that_may_not_be_read(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = published.hub
    assert refusal("hf://alice/nothing-there", errors.HubError).startswith(
        "hf://alice/nothing-there: the model does not"
    )
    assert "@never: the repo has no such revision. Name a branch" in refusal(f"{PLACE}@never", errors.HubError)
    assert refusal("hf://alice", errors.UsageError).startswith("hf://alice: not the address of a model")
    name = make_repo(hub, "gated")
    files = {"model_index.json": b'{"_class_name": "LensPipeline"}'}
    assert commit(hub, name, files).status == 200
    assert ask(hub, "PUT", f"/api/models/{name}/settings", {"gated": "auto"}).status == 200
    secret = make_repo(hub, "secret", private=True)
    monkeypatch.setenv("HF_TOKEN", hub.token("reader"))
    assert "the repo is gated. Request access on its page" in refusal(f"hf://{name}", errors.HubError)
    assert "does not exist, or is private" in refusal(f"hf://{secret}", errors.HubError)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    assert "the token is wrong or has expired" in refusal(f"hf://{secret}", errors.HubError)


def test_files_of_another_size(published: Published) -> None:
    hub, pinned = published.hub, f"{PLACE}@{head(published.hub)}"
    hub.fault("status", method="GET", path="/_files/", times=0, status=200, body="short")
    said = f"{pinned}: a file was received with another size than the Hub records"
    assert refusal(PLACE, errors.HubError).startswith(said)
    hub.clear_faults()
    folder, _ = download(PLACE)
    (folder / "vae" / WEIGHTS).resolve().write_bytes(b"cut")
    said = f"{pinned}/vae/{WEIGHTS}: has 465588 bytes on the Hub, but 3 in the cache. Delete "
    assert refusal(PLACE, errors.HubError).startswith(said)
    hub.forget_requests()
    (folder / "vae" / WEIGHTS).resolve().unlink()
    assert snapshot(download(PLACE)[0]) == snapshot(folder)
    assert len([path for path in paths(hub) if path.startswith("GET /_files/")]) == 1


def test_a_hub_that_is_busy_is_asked_again(published: Published) -> None:
    hub = published.hub
    hub.fault("status", method="GET", path="/_files/", status=500)
    notes = Notes()
    with pipeline_folders([PLACE], notes) as (folder,):
        assert {name: len(content) for name, content in snapshot(folder).items()} == published.sizes
    assert any("trying again" in text for text in notes.texts)
    (shown,) = notes.shown
    assert (shown.label, shown.done, shown.total) == (f"downloading {REPO}", sum(published.sizes.values()), shown.total)
    assert shown.done == shown.total


def begin(hub: FaultyHub, home: Path, *line: object) -> subprocess.Popen[str]:
    """Start a download in which the contents of two files do not arrive, and wait until all others are there."""
    hub.fault("delay", method="GET", path=f"/_files/.*{WEIGHTS}", times=0, seconds=600.0)
    process = subprocess.Popen(
        list(map(str, line)), env=hub.environment(os.environ, home, xet=False), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(kept(home)) < 10 or len(unfinished(home)) < 2:
        assert time.monotonic() < deadline, process.poll()
        time.sleep(0.05)
    return process


def kept(home: Path) -> list[Path]:
    """The files in the cache."""
    return [file for file in home.glob("hub/models--*/snapshots/*/**/*") if file.is_file()]


def unfinished(home: Path) -> list[Path]:
    return list(home.glob("hub/models--*/blobs/*.incomplete"))


def test_a_download_that_was_killed_continues(published: Published, tmp_path: Path) -> None:
    hub = published.hub
    process = begin(hub, tmp_path / "home", sys.executable, "-c", _DOWNLOAD, PLACE)
    process.kill()
    process.communicate()
    assert len(unfinished(tmp_path / "home")) == 2
    hub.clear_faults()
    hub.forget_requests()
    folder, said = download(PLACE)
    large = [published.sizes[f"{name}/{WEIGHTS}"] for name in ("transformer", "vae")]
    assert f" of them in the cache; downloading {readable_size(sum(large))} to " in said[0]
    assert {name: len(content) for name, content in snapshot(folder).items()} == published.sizes
    sent = [request["sent"] for request in hub.requests() if request["path"].startswith("/_files/")]
    assert sorted(sent) == sorted(large)


@pytest.mark.long
def test_ctrl_c_while_nothing_arrives(published: Published, tmp_path: Path) -> None:
    hub, home = published.hub, tmp_path / "home"
    line = command("generate", PLACE, "--prompt", "a kettle", "--out", tmp_path / "a.png")
    process = begin(hub, home, *line)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert (process.returncode, time.monotonic() - began < 5) == (130, True)
    assert without_progress(said).endswith(" error: interrupted")
    assert unfinished(home) == []
    assert not (tmp_path / "a.png").exists()


@pytest.mark.usefixtures("published")
def test_the_image_is_that_of_the_folder(tiny_repo: Path, lensconv: Lensconv, tmp_path: Path) -> None:
    folder = tmp_path / "Lens-Turbo"
    folder.symlink_to(tiny_repo)
    drawing = ("--prompt", "a tin kettle", "--height", 64, "--width", 96, "--json")
    found = [
        lensconv("generate", repo, *drawing, "--out", tmp_path / f"{number}.png")
        for number, repo in enumerate((folder, PLACE))
    ]
    assert [outcome.code for outcome in found] == [0, 0], found[1]
    local, remote = (outcome.result["settings"] for outcome in found)
    # The number of steps is that of the variant, which the name of the repo shows.
    assert remote == local
    assert remote["steps"] == 4
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


@pytest.mark.long
def test_other_pipelines(hub: FaultyHub, lensconv: Lensconv, tmp_path: Path) -> None:
    """One that has a variant of some weights only, and one that draws no images, of which nothing is downloaded."""
    for preset in ("tiny-sdxl", "tiny-wan"):
        synthesize(tmp_path / preset, preset=preset)
        if preset == "tiny-sdxl":
            unet = tmp_path / preset / "unet" / WEIGHTS
            unet.rename(unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
        publish(hub, tmp_path / preset, f"alice/{preset}", tmp_path / "other")
    drawing = ("--prompt", "a tin kettle", "--steps", 2, "--json")
    for number, place in enumerate((tmp_path / "tiny-sdxl", "hf://alice/tiny-sdxl")):
        outcome = lensconv("generate", place, *drawing, "--out", tmp_path / f"{number}.png")
        assert outcome.code == 0, outcome
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    hub.forget_requests()
    refused = lensconv("generate", "hf://alice/tiny-wan", *drawing, "--out", tmp_path / "2.png")
    assert (refused.code, "makes videos" in refused.result["error"]["message"]) == (2, True)
    assert not any("safetensors" in path for path in paths(hub))


@pytest.mark.long
def test_over_xet(hub: FaultyHub, tiny_repo: Path, tmp_path: Path) -> None:
    publish(hub, tiny_repo, "alice/xet", tmp_path / "other", xet=True)
    hub.forget_requests()
    variables = hub.environment(os.environ, tmp_path / "home")
    done = run_python(_DOWNLOAD, "hf://alice/xet", tiny_repo, env=variables)
    assert done.returncode == 0, done.stderr
    folder, other, size = done.stdout.splitlines()
    assert snapshot(Path(folder)) == snapshot(tiny_repo)
    assert Path(other) == tiny_repo
    assert int(size) == sum(map(len, snapshot(tiny_repo).values()))
    assert any("/xet-read-token/" in path for path in paths(hub))
    assert not any(path.startswith("GET /_files/") for path in paths(hub))


@pytest.mark.long
def test_a_benchmark_of_addresses(
    published: Published, tiny_repo: Path, tiny_release: Path, lensconv: Lensconv, tmp_path: Path
) -> None:
    hub, suite, output = published.hub, tmp_path / "suite.toml", tmp_path / "evidence"
    release = publish(hub, tiny_release, "alice/quantized", tmp_path / "other")
    (tmp_path / "Lens-Turbo").symlink_to(tiny_repo)
    suite.write_text(SUITE)
    options = ("--prompts", suite, "--out", output, "--pairs", 1, "--mode", "standard", *DRAWING, "--json")
    places = (f"{PLACE}@{head(hub)}", f"hf://alice/quantized@{release}")
    outcome = lensconv("bench", PLACE, "hf://alice/quantized", *options)
    assert outcome.code == 0, outcome
    said = without_progress(outcome.stderr)
    assert all(f"{place}: " in said for place in places)
    metrics = json.loads((output / "benchmark_metrics.json").read_text())
    for name, place in zip(("original", "quantized"), places, strict=True):
        source = metrics["sources"][name]
        assert f"hf://{source['repo_id']}@{source['revision']}" == place
    for file in output.glob("*.json*"):
        assert "snapshots" not in file.read_text(), file
    assert "weights: the check" not in said
    # A later run continues, also with a part from a folder that has the same files.
    for first in (PLACE, tmp_path / "Lens-Turbo"):
        again = lensconv("bench", first, "hf://alice/quantized", *options)
        assert (again.code, again.result["resumed"]) == (0, again.result["images"]), again
    refused = lensconv("bench", PLACE, PLACE, *options)
    assert f"{places[0]} and {places[0]} are the same folder" in refused.result["error"]["message"]


def test_a_threshold_that_cannot_be_measured_needs_no_download(
    published: Published, lensconv: Lensconv, tmp_path: Path
) -> None:
    hub = published.hub
    repo = make_repo(hub, "another")
    assert commit(hub, repo, {"model_index.json": b'{"_class_name": "FluxPipeline"}'}).status == 200
    outcome = lensconv("bench", f"hf://{repo}", PLACE, "--out", tmp_path / "o", "--fail-over", "trajectory=1", "--json")
    assert "it is measured for Lens only" in outcome.result["error"]["message"]
    assert not cache_folder().exists()


@pytest.mark.usefixtures("published")
def test_a_machine_without_the_folder_of_an_address_downloads_the_same_commit(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pipeline_folders([PLACE]) as (folder,):
        original, _ = open_subjects(folder, tiny_release, SILENT)
        shared = SharedRepo.of(original, PLACE)
    # The cache names the folder of a commit after it.
    assert shared.address == f"{PLACE}@{folder.name}"
    assert shared.find().folder == str(folder)
    # Another machine has another cache.
    shutil.move(tmp_path / "home" / "hub", tmp_path / "elsewhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "node" / "hub"))
    found = shared.find()
    assert Path(found.folder).is_relative_to(tmp_path / "node")
    assert found.states.keys() == {str(Path(found.folder) / file.path) for file in shared.files}
    with pytest.raises(errors.MissingInput, match="no such file"):
        replace(shared, address="").find()
