"""The dress rehearsal: a release that goes through all of it, and releases that do not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from huggingface_hub import constants
from PIL import Image

from converter import convert
from converter.cli.publish import _render_rehearsal
from converter.console import SILENT
from converter.errors import DiskError, EvidenceError, LensconvError, MissingInput, ReleaseError, UsageError
from converter.publication.options import PublishOptions
from converter.rehearsal.course import Course, Step
from converter.rehearsal.process import RunningHub
from converter.rehearsal.rehearse import Rehearsal, rehearse
from converter.rehearsal.settings import HubSettings
from tests.conftest import Lensconv, edit_json, forget_file, list_file, names_in, run_process, snapshot
from tests.expected import check_expected
from tests.faulty_hub import faulty_hub
from tests.forms import accepted
from tests.hubs import without_progress
from tests.tiny_pipelines import save_stable_diffusion

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CARD = "---\nlicense: mit\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---\n\n# Tiny\n\n"
CARD += "<picture><source srcset=sign.png>![A sign](sign.png)</picture> ![Another](https://127.0.0.1:9/x.png)\n"


@pytest.fixture
def release(release: Path, tmp_path: Path) -> Path:
    """A release with a card that shows an image, and what is noted of a real publication."""
    Image.new("RGB", (8, 8)).save(tmp_path / "sign.png")
    list_file(release, "sign.png", (tmp_path / "sign.png").read_bytes())
    list_file(release, "README.md", CARD.encode())
    (release / ".lensconv").mkdir()
    (release / ".lensconv" / "receipt.json").write_text("{}")
    return release


def check_shown(name: str, text: str, tmp_path: Path) -> None:
    """Compare what a rehearsal has shown, without what differs from run to run."""
    for pattern, shown in (
        (r"http://127\.0\.0\.1:\d+", "<hub>"),
        (re.escape(str(tmp_path)), "<folder>"),
        (r"\b[0-9a-f]{12}(?:[0-9a-f]{28})?\b", "<commit>"),
        (r"\d+\.\d+(?= s\b)|(?<=\"elapsed_s\": )\d+\.\d+", "<seconds>"),
    ):
        text = re.sub(pattern, shown, text)
    check_expected(name, without_progress(text) + "\n")


def test_a_release_goes_through_all_of_it(release: Path, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    arguments = ("publish", release, "alice/tiny", "--rehearse", "--keep", keep, "--private", "--tag", "v1")
    # The user's own token and endpoint are not used.
    own = {"HF_TOKEN": "hf_" + "b" * 34, "CUDA_VISIBLE_DEVICES": ""}
    own |= dict.fromkeys(("HF_ENDPOINT", "http_proxy"), "http://127.0.0.1:9")
    keep.mkdir()
    (keep / "image.png").write_text("of the rehearsal before")
    done = run_process(*arguments, env=os.environ | own | {"COLUMNS": "1000"})
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    check_shown("rehearsal_text.txt", done.stderr, tmp_path)
    with Image.open(keep / "image.png") as image:
        assert image.size == (256, 256)
    assert names_in(keep) == ["hub", "image.png"]
    assert (release / ".lensconv" / "receipt.json").read_text() == "{}"
    with closing(sqlite3.connect(keep / "hub" / "hub.sqlite")) as state:
        rows = state.execute("SELECT private, ref FROM repos JOIN refs ON repo = repos.number ORDER BY ref").fetchall()
    assert rows == [(1, "refs/heads/main"), (1, "refs/tags/v1")]


def test_the_first_step_that_fails_ends_it(
    release: Path, tmp_path: Path, lensconv: Lensconv, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_file(release, "sign.png")
    (release / "sign.png").unlink()
    started: list[list[str]] = []
    begin = subprocess.Popen.__init__

    def noting(self: Any, line: list[str], *arguments: Any, **options: Any) -> None:
        started.append(line)
        begin(self, line, *arguments, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", noting)
    words = ("message=Two words", "revision=main", "patience=77", "private", "create-pr", "read-back", "json", "quiet")
    options = [f"--{word}" for word in words]
    outcome = lensconv("publish", release, "alice/tiny", "--rehearse", "--keep", tmp_path / "kept", *options)
    assert outcome.code == 4
    (line,) = [line for line in started if "publish" in line]
    assert [word for word in line if re.match("--(?!receipt=)", word)] == options
    report = outcome.result
    assert accepted(report | {"receipt": {}}, "rehearsal") == [".receipt more"]
    assert accepted(report["receipt"], "publish") == []
    assert all(0 < step["elapsed_s"] < 60 for step in report["steps"])
    chosen = ("private", "tag", "pull_request", "read_back", "changed")
    report["receipt"] = {name: report["receipt"][name] for name in chosen}
    assert report["receipt"].pop("read_back")["files"] == 16
    check_shown("rehearsal_json.txt", json.dumps(report), tmp_path)
    done = Rehearsal("alice/tiny", {}, (Step("generate", 1.23456, "done"),), None, None).to_dict()
    step = {"name": "generate", "ok": True, "elapsed_s": 1.235, "detail": "done"}
    assert (done.pop("steps"), done.pop("ok"), done["folder"], done["image"]) == ([step], True, None, None)


def test_the_download_is_compared_with_the_manifest(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """This is over LFS, where the client itself compares only sizes."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with faulty_hub(HubSettings(tmp_path / "hub", multipart_bytes=5 << 20, part_bytes=5 << 20)) as hub:
        options = PublishOptions(receipt=tmp_path / "receipt.json")
        course = Course(hub, release, "rehearsal/tiny", options, tmp_path, tmp_path / "x.png", SILENT, True)
        course.publish()
        hub.fault("corrupt", sha256=hashlib.sha256((release / WEIGHTS).read_bytes()).hexdigest())
        with pytest.raises(ReleaseError, match="diffusion_pytorch_model"):
            course.download()
        assert capfd.readouterr().err == ""
        course.receipt["commit"] = "0" * 40
        with pytest.raises(LensconvError, match=r"^snapshot_download: .*Invalid rev id: 0{40}"):
            course.download()
        assert course.can_generate()
        for content in ('{"_class_name": "FluxPipeline"}', "{"):
            (release / "model_index.json").write_text(content)
            assert not course.can_generate()


@pytest.mark.long
def test_other_pipelines_are_drawn_too(tmp_path: Path) -> None:
    """With the steps that their calls take, in their own size; and what makes no image of a prompt is loaded."""
    source = save_stable_diffusion(tmp_path / "source", checks=False)
    release = tmp_path / "release"
    convert(source, release)
    list_file(release, "README.md", b"---\nlicense: mit\nlibrary_name: diffusers\n---\n\n# Tiny\n")
    arguments = ("publish", release, "alice/tiny", "--rehearse", "--json", "--quiet")
    done = run_process(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    step = json.loads(done.stdout)["steps"][-1]
    assert (step["name"], step["detail"]) == ("generate", "64x64, 4 steps, on cpu")
    edit_json(release / "model_index.json", _class_name="StableDiffusionImg2ImgPipeline")
    course = Course(
        cast(RunningHub, None), release, "a/b", PublishOptions(), tmp_path, tmp_path / "x.png", SILENT, True
    )
    assert not course.can_generate()


def test_a_release_that_is_not_fit_is_refused_as_publish_does(release: Path) -> None:
    (release / ".env").write_text("X=1")
    before = snapshot(release)
    rehearsed = run_process("publish", release, "alice/tiny", "--rehearse", "--json")
    published = run_process("publish", release, "alice/tiny", "--dry-run", "--json")
    assert (rehearsed.returncode, rehearsed.stdout) == (published.returncode, published.stdout) == (1, published.stdout)
    assert ".env" in published.stdout
    assert snapshot(release) == before


def test_what_is_said_at_the_end() -> None:
    """Where the machine lacks something, where a step fails, and of a public repo that is kept with its image."""

    def said(code: int, folder: Path | None = None) -> list[str]:
        image = folder and folder / "image.png"
        rehearsal = Rehearsal("a/b", {"private": False}, (Step("load", 2.25, "so", code),), folder, image)
        return [str(part) for part in _render_rehearsal(rehearsal)]

    lack = "Not rehearsed: the step load and later. This machine lacks memory, disk, a device or a package; see above."
    assert said(3) == ["  FAIL  load, 2.2 s: so", lack]
    assert said(4) == ["  FAIL  load, 2.2 s: so", "Do not publish this yet: load failed."]
    kept = ["To look at it: lensconv hub serve --folder /kept/hub", "The image: /kept/image.png"]
    assert (said(0, Path("/kept"))[0], said(0, Path("/kept"))[2:]) == ("  ok    load, 2.2 s: so", kept)


def test_contradicting_options_are_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="alice/tiny@main: is not a repository name"):
        rehearse(release, "alice/tiny@main", keep=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    with pytest.raises(UsageError, match="--dry-run"):
        rehearse(release, "alice/tiny", PublishOptions(dry_run=True))
    (tmp_path / "link").symlink_to(release)
    for root, keep in ((release, release), (release, tmp_path / "link"), (tmp_path / "link", release)):
        with pytest.raises(UsageError, match="is inside the release"):
            rehearse(root, "alice/tiny", keep=keep / "kept")
    with pytest.raises(LensconvError, match=r"sign\.png/kept: cannot be written"):
        rehearse(release, "alice/tiny", keep=tmp_path / "sign.png" / "kept")
    with pytest.raises(MissingInput, match="no-such"):
        rehearse(tmp_path / "no-such", "alice/tiny")
    done = run_process("publish", release, "alice/tiny", "--keep", tmp_path / "kept")
    assert done.returncode == 2
    assert "--rehearse" in done.stderr
    assert not (release / "kept").exists()


def test_a_release_that_does_not_fit_on_the_disk_twice_is_refused(release: Path, tmp_path: Path) -> None:
    os.truncate(release / "sign.png", 10**13)
    with pytest.raises(DiskError, match="kept: a rehearsal needs 20000"):
        rehearse(release, "alice/tiny", keep=tmp_path / "kept")
    assert names_in(tmp_path / "kept") == []


@pytest.mark.parametrize("error", [UsageError("a", "b"), EvidenceError("file", "reason"), LensconvError("a")])
def test_an_error_is_the_same_in_another_process(error: LensconvError) -> None:
    again = LensconvError.from_dict(error.to_dict()["error"])
    assert (type(again), again.to_dict(), str(again)) == (type(error), error.to_dict(), str(error))
