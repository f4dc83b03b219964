"""The dress rehearsal: a release that goes through all of it, and releases that do not."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import jsonschema
import pytest
from huggingface_hub import constants
from PIL import Image

from converter.console import SILENT
from converter.errors import DiskError, EvidenceError, LensconvError, MissingInput, ReleaseError, UsageError
from converter.publication.options import PublishOptions
from converter.rehearsal.course import Course
from converter.rehearsal.rehearse import rehearse
from converter.rehearsal.settings import HubSettings
from converter.schemas import load_schema
from tests.conftest import forget_file, list_file, names_in, run_process, snapshot
from tests.faulty_hub import faulty_hub

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CARD = "---\nlicense: mit\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---\n\n# Tiny\n\n![A sign](sign.png)\n"


@pytest.fixture
def release(release: Path, tmp_path: Path) -> Path:
    """A release with a card that shows an image, and what is noted of a real publication."""
    Image.new("RGB", (8, 8)).save(tmp_path / "sign.png")
    list_file(release, "sign.png", (tmp_path / "sign.png").read_bytes())
    list_file(release, "README.md", CARD.encode())
    (release / ".lensconv").mkdir()
    (release / ".lensconv" / "receipt.json").write_text("{}")
    return release


def test_a_release_goes_through_all_of_it(release: Path, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    arguments = ("publish", release, "alice/tiny", "--rehearse", "--keep", keep, "--private", "--tag", "v1", "--json")
    # The user's own token and endpoint are not used.
    own = {"HF_TOKEN": "hf_" + "b" * 34, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = run_process(*arguments, env=os.environ | own)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    jsonschema.validate(report, load_schema("rehearsal"))
    jsonschema.validate(report["receipt"], load_schema("publish"))
    names = ["publish", "page", "audit", "download", "generate"]
    assert [(step["name"], step["ok"]) for step in report["steps"]] == [(name, True) for name in names]
    assert report["ok"]
    assert (report["receipt"]["private"], report["receipt"]["tag"]) == (True, "v1")
    assert "one image" in report["steps"][1]["detail"]
    with Image.open(report["image"]) as image:
        assert image.size == (256, 256)
    assert names_in(keep) == ["hub", "image.png"]
    assert (release / ".lensconv" / "receipt.json").read_text() == "{}"


def test_the_first_step_that_fails_ends_it(release: Path) -> None:
    forget_file(release, "sign.png")
    (release / "sign.png").unlink()
    report = rehearse(release, "alice/tiny")
    assert [step.name for step in report.steps] == ["publish", "page"]
    assert (report.exit_code, report.to_dict()["ok"], report.image) == (4, False, None)
    assert "sign.png: HTTP Error 404" in report.steps[-1].detail


def test_the_download_is_compared_with_the_manifest(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is over LFS, where the client itself compares only sizes."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with faulty_hub(HubSettings(tmp_path / "hub")) as hub:
        options = PublishOptions(receipt=tmp_path / "receipt.json")
        course = Course(hub, release, "rehearsal/tiny", options, tmp_path, tmp_path / "x.png", SILENT, True)
        course.publish()
        hub.fault("corrupt", sha256=hashlib.sha256((release / WEIGHTS).read_bytes()).hexdigest())
        with pytest.raises(ReleaseError, match="diffusion_pytorch_model"):
            course.download()


def test_a_release_that_is_not_fit_is_refused_as_publish_does(release: Path) -> None:
    (release / ".env").write_text("X=1")
    before = snapshot(release)
    rehearsed = run_process("publish", release, "alice/tiny", "--rehearse", "--json")
    published = run_process("publish", release, "alice/tiny", "--dry-run", "--json")
    assert (rehearsed.returncode, rehearsed.stdout) == (published.returncode, published.stdout) == (1, published.stdout)
    assert ".env" in published.stdout
    assert snapshot(release) == before


def test_contradicting_options_are_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dry-run"):
        rehearse(release, "alice/tiny", PublishOptions(dry_run=True))
    with pytest.raises(UsageError, match="is inside the release"):
        rehearse(release, "alice/tiny", keep=release / "kept")
    with pytest.raises(MissingInput, match="no-such"):
        rehearse(tmp_path / "no-such", "alice/tiny")
    done = run_process("publish", release, "alice/tiny", "--keep", tmp_path / "kept")
    assert done.returncode == 2
    assert "--rehearse" in done.stderr
    assert not (release / "kept").exists()


def test_a_release_that_does_not_fit_on_the_disk_twice_is_refused(release: Path, tmp_path: Path) -> None:
    os.truncate(release / "sign.png", 10**13)
    with pytest.raises(DiskError, match="a rehearsal needs 20000"):
        rehearse(release, "alice/tiny", keep=tmp_path / "kept")
    assert names_in(tmp_path / "kept") == []


@pytest.mark.parametrize("error", [UsageError("a", "b"), EvidenceError("file", "reason"), LensconvError("a")])
def test_an_error_is_the_same_in_another_process(error: LensconvError) -> None:
    again = LensconvError.from_dict(error.to_dict()["error"])
    assert (type(again), again.to_dict(), str(again)) == (type(error), error.to_dict(), str(error))
