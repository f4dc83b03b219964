"""The manifest of a release: as ``convert`` writes it, as ``card`` amends it, as ``card`` and ``publish`` use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from converter import CardOptions, make_card, verify
from converter.conversion.release.manifest import (
    CARD_NAME,
    MANIFEST_NAME,
    Manifest,
    describe_file,
    encode_json,
    read_manifest,
)
from converter.conversion.release.replacing import refuse_what_is_no_checkpoint
from converter.errors import OutputError, ReleaseError
from converter.publication.preflight import examine_release
from tests.conftest import edit_json, list_file

CARD = b"---\nlicense: mit\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---\n\n# Tiny\n"
WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def release(release: Path) -> Path:
    list_file(release, CARD_NAME, CARD)
    return release


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text())
    return content


def note_card(folder: Path, note: Any) -> Manifest:
    edit_json(folder / MANIFEST_NAME, card=note, later={"key": 1})
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def test_what_convert_writes_is_what_is_read(tiny_release: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_release)
    assert manifest is not None
    assert manifest.encode() == (tiny_release / MANIFEST_NAME).read_bytes()
    assert [file.to_dict() for file in manifest.files.values()] == read(tiny_release)["files"]
    assert (manifest.card_files, manifest.card_repository) == ((), None)
    assert read_manifest(tmp_path) is None


def test_a_manifest_of_version_1_is_read_and_amended(release: Path) -> None:
    """It has what it says about its one component at the top."""
    newer, content = read_manifest(release), read(release)
    (component,) = content.pop("components")
    older = {**content, **component, "format_version": 1}
    (release / MANIFEST_NAME).write_bytes(encode_json(older))
    manifest = read_manifest(release)
    assert newer is not None
    assert manifest is not None
    assert (manifest.components, manifest.files) == (newer.components, newer.files)
    assert (manifest.main.name, manifest.versions) == ("transformer", newer.versions)
    make_card(release, options=CardOptions(license="mit"))
    report = verify(release, checksums=True)
    assert report.ok
    assert [part.name for part in report.components] == ["transformer"]
    examine_release(release, "owner/tiny")
    amended = read(release)
    assert {**amended, "files": 0, "card": 0} == {**older, "files": 0, "card": 0}
    assert CARD_NAME in amended["card"]["files"]
    edit_json(release / MANIFEST_NAME, output={**older["output"], "tensors": 5})
    assert [check.name for check in verify(release).checks if not check.ok] == ["manifest"]


def test_a_card_takes_the_place_of_an_earlier_one(release: Path) -> None:
    manifest = note_card(release, {"files": [CARD_NAME, WEIGHTS], "repository": "a/b", "verified": False})
    assert (manifest.card_files, manifest.card_repository) == ((CARD_NAME, WEIGHTS), "a/b")
    added = [describe_file(name, b"1") for name in ("model_index.json", "a.png")]
    amended = manifest.with_card(added, repository="c/d", verified=True)
    assert amended.files.keys() == {"a.png", *manifest.files} - {CARD_NAME, WEIGHTS}
    assert ([*amended.files], amended.files["model_index.json"].bytes) == (sorted(amended.files), 1)
    content = json.loads(amended.encode())
    assert content["card"] == {"repository": "c/d", "verified": True, "files": ["a.png", "model_index.json"]}
    # Keys of a later version stay.
    assert {**content, "files": 0, "card": 0} == {**read(release), "files": 0, "card": 0}


@pytest.mark.parametrize(
    ("note", "files", "verified"),
    [
        (5, (), True),
        ({"files": 5, "repository": {}, "verified": None}, (), True),
        ({"files": [{}, 5, "nothing", CARD_NAME], "verified": False}, (CARD_NAME,), False),
    ],
)
def test_a_note_that_cannot_be_used(note: Any, files: tuple[str, ...], verified: bool, release: Path) -> None:
    found = note_card(release, note)
    assert (found.card_files, found.card_repository, found.is_card_verified) == (files, None, verified)


def test_an_adopted_card_keeps_what_was_noted(release: Path) -> None:
    note_card(release, {"files": [CARD_NAME], "repository": "owner/tiny", "verified": False})
    (release / CARD_NAME).write_bytes(CARD + b"By hand.\n")
    assert not make_card(release, options=CardOptions(adopt=True)).verified
    assert read(release)["card"] == {"files": [CARD_NAME], "repository": "owner/tiny", "verified": False}
    assert read(release)["later"] == {"key": 1}


def test_the_card_of_another_repo_is_not_published(release: Path) -> None:
    note_card(release, {"files": [CARD_NAME], "repository": "owner/tiny", "verified": True})
    assert examine_release(release, "owner/tiny").bytes > 0
    with pytest.raises(ReleaseError, match="tells people to load owner/tiny, not owner/other"):
        examine_release(release, "owner/other")


def test_weights_of_all_components_are_examined(release: Path) -> None:
    content = (release / WEIGHTS).read_bytes()
    list_file(release, WEIGHTS, b"\xff" * 8 + content[8:])
    with pytest.raises(ReleaseError, match="claims a header of"):
        examine_release(release, "owner/tiny")


def test_overwrite_goes_by_the_names_in_a_manifest_of_another_version(release: Path) -> None:
    edit_json(release / MANIFEST_NAME, format_version=3)
    refuse_what_is_no_checkpoint(release)
    (release / "vae" / "thesis.txt").touch()
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        refuse_what_is_no_checkpoint(release)
