"""What is copied into a release, and what a release may replace."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from converter import ConvertOptions, Recipe, convert, plan, verify
from converter.checkpoint.source import open_checkpoint
from converter.conversion.release.companions import find_companions
from converter.conversion.release.replacing import refuse_what_is_no_checkpoint
from converter.conversion.release.selection import select_files
from converter.errors import DiskError, MissingInput, OutputError, ReleaseError
from converter.presentation.card.make_card import make_card
from converter.publication.preflight import examine_release
from converter.synthesis.synthesize import synthesize
from tests.conftest import edit_json, list_file, names_in, snapshot
from tests.reference import weight_files
from tests.releases import write_card
from tests.reporters import Notes
from tests.tiny_models import WEIGHTS, convert_default, into_cache, make_pipeline, save_model


def test_the_other_components_of_a_pipeline_come_along(tmp_path: Path) -> None:
    source = make_pipeline(tmp_path / "source")
    report = convert(source, tmp_path / "out")
    original, release = snapshot(source), snapshot(tmp_path / "out")
    copied = {"model_index.json", "vae/config.json", f"vae/{WEIGHTS}", "tokenizer/nested/vocabulary.txt"}
    made = {f"transformer/{name}" for name in ("config.json", "quantization_config.json", WEIGHTS)}
    assert set(release) == copied | made | {"sdnq_quantization_summary.json", "lensconv_manifest.json"}
    assert {name: release[name] for name in copied} == {name: original[name] for name in copied}
    assert {file.name for file in report.files} == set(release)
    component = weight_files(convert_default(source / "transformer", tmp_path / "alone"))
    assert weight_files(tmp_path / "out" / "transformer") == component
    # safetensors leaves 0600, which a second name of the same file would keep.
    assert (tmp_path / "out" / "vae" / WEIGHTS).stat().st_mode & 0o777 == 0o644
    selection = select_files([open_checkpoint(source)])
    assert not any(companion.can_share for companion in find_companions(selection, Path("/proc")))


def test_only_what_is_copied_needs_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another mode than new ones have cannot be shared with the source."""
    source, needed = make_pipeline(tmp_path / "source"), list[int]()

    def refused(place: Path, recipe: str | Recipe | None = None) -> int:
        with pytest.raises(DiskError, match="bytes are needed, but only 0 are free") as caught:
            convert(place, tmp_path / "out", recipe)
        return int(caught.value.message.split()[1])

    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=1))
    for mode in (0o644, 0o600, 0o444):
        (source / "vae" / WEIGHTS).chmod(mode)
        needed.append(refused(source))
    size = (source / "vae" / WEIGHTS).stat().st_size
    assert [number - needed[0] for number in needed] == [0, size, size]
    # Where the weights decide, the parts are on the disk twice for a while.
    dynamic = Recipe("x", {"weights_dtype": "uint4", "use_dynamic_quantization": True})
    assert not plan(source / "transformer", dynamic).is_exact
    assert refused(source / "transformer", dynamic) == 2 * refused(source / "transformer", "sdnq-uint4")


def test_a_snapshot_of_the_hub_cache_is_followed_into_its_blobs(tmp_path: Path) -> None:
    convert(into_cache(make_pipeline(tmp_path / "plain")), tmp_path / "out")
    assert not any(file.is_symlink() for file in (tmp_path / "out").rglob("*"))
    assert (tmp_path / "out" / "tokenizer" / "nested" / "vocabulary.txt").read_text() == "words\n"


SDNQ_FILES = {"quantization_config.json", "sdnq_quantization_summary.json"}


def test_companions_of_a_component_come_along_into_an_empty_folder(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "Qwen3ForCausalLM")
    companions = {"tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "generation_config.json"}
    # What another program left there is not what this conversion makes.
    stale = {"pytorch_model.bin", "lensconv_manifest.json"} | SDNQ_FILES
    for name in companions | stale:
        (source / name).write_text("{}")
    (source / "folder.json").mkdir()
    (tmp_path / "out").mkdir()
    convert(source, tmp_path / "out", options=ConvertOptions(overwrite=True))
    assert {name for name, content in snapshot(tmp_path / "out").items() if content == b"{}"} == companions


def test_an_existing_output_is_replaced_only_if_asked(lens_source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    # Below a folder that is not there.
    convert(lens_source, tmp_path / "new" / ".." / "out", "sdnq-int8")
    assert names_in(tmp_path) == ["out"]
    first = snapshot(output)
    with pytest.raises(OutputError, match="exists already"):
        convert(lens_source, output)
    assert snapshot(output) == first
    (output / "stale.safetensors").write_bytes(b"")
    convert(lens_source, output, options=ConvertOptions(overwrite=True))
    assert "stale.safetensors" not in snapshot(output)
    assert snapshot(output) != first
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["thesis.txt", "sub/thesis.txt", "sub/README.md", "tokenizer.json"])
def test_overwriting_spares_what_is_no_part_of_the_checkpoint(name: str, lens_source: Path, tmp_path: Path) -> None:
    output = convert_default(lens_source, tmp_path / "out")
    own = output / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("years of work")
    for make in (convert, lambda _, place, options: synthesize(place, layers=1, overwrite=options.overwrite)):
        with pytest.raises(OutputError, match=f"{name}: does not belong to a checkpoint"):
            make(lens_source, output, options=ConvertOptions(overwrite=True))
    assert own.read_text() == "years of work"


def test_overwriting_replaces_a_whole_pipeline(tmp_path: Path) -> None:
    source = make_pipeline(tmp_path / "source")
    shutil.copytree(source, tmp_path / "out")
    convert(source, tmp_path / "out", options=ConvertOptions(overwrite=True))
    (tmp_path / "out" / "README.md").write_text("a card")
    convert(source, tmp_path / "out", "sdnq-int8", ConvertOptions(overwrite=True))
    assert (tmp_path / "out" / "lensconv_manifest.json").is_file()


def test_the_usual_files_of_a_checkpoint_may_be_replaced_without_a_manifest(tmp_path: Path) -> None:
    names = {"a.safetensors", "a.safetensors.index.json", "config.json", "generation_config.json", "README.md"}
    for name in names | SDNQ_FILES | {".gitattributes", ".lensconv/notes", "vae/anything"}:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "model_index.json").write_text('{"vae": ["a", "b"], "unet": ["a", "b"]}')
    refuse_what_is_no_checkpoint(tmp_path)
    (tmp_path / "unet").touch()
    with pytest.raises(OutputError, match="unet: does not belong"):
        refuse_what_is_no_checkpoint(tmp_path)


STRAY = (
    *(".DS_Store", ".ipynb_checkpoints/a.json", ".git/HEAD", ".gitattributes", ".cache/huggingface/download/a.lock"),
    *("vae/.DS_Store", "vae/.ipynb_checkpoints/a.json", "vae/a.incomplete", "tokenizer/__pycache__/a.pyc"),
    *("tokenizer/nested/.DS_Store", "tokenizer/nested/.ipynb_checkpoints/a.txt", "transformer/.DS_Store", "README.md"),
)


def add_stray_files(folder: Path) -> None:
    for name in STRAY:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("stray")


def test_stray_files_in_a_source_do_not_keep_a_release_from_being_published(tmp_path: Path) -> None:
    source, release = make_pipeline(tmp_path / "source"), tmp_path / "out"
    add_stray_files(source)
    for overwrite in (False, True):
        convert(source, release, options=ConvertOptions(overwrite=overwrite))
        assert not {*STRAY} & {*snapshot(release)}
        write_card(release, "Tiny")
        # What file managers and editors leave in the release is neither published nor in the way, here or next time.
        for name in (
            "vae/.DS_Store",
            "tokenizer/.ipynb_checkpoints/a",
            ".cache/huggingface/a",
            "vae/__pycache__/a.pyc",
        ):
            (release / name).parent.mkdir(parents=True, exist_ok=True)
            (release / name).touch()
        assert not {*STRAY} & {file.name for file in examine_release(release, "owner/tiny").files} - {"README.md"}
        assert not any("does not list" in note for note in verify(release).notes)


def test_the_hint_for_a_release_that_lists_stray_files_helps(tmp_path: Path) -> None:
    """Releases of earlier versions list them."""
    source = make_pipeline(tmp_path / "source")
    release = convert_default(source, tmp_path / "out")
    add_stray_files(source)
    for name in (".DS_Store", "vae/.DS_Store", "tokenizer/.ipynb_checkpoints/a", "vae/.hidden"):
        (release / name).parent.mkdir(exist_ok=True)
        list_file(release, name, b"stray")
    write_card(release, "Tiny")
    with pytest.raises(ReleaseError) as caught:
        examine_release(release, "owner/tiny")
    assert caught.value.hint == "Convert again; lensconv leaves such files behind now."
    assert "missing" not in caught.value.message
    assert verify(release, checksums=True).ok
    convert(source, release, options=ConvertOptions(overwrite=True))
    write_card(release, "Tiny")
    examine_release(release, "owner/tiny")


def test_code_comes_along_and_is_not_run(tiny_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiffusionPipeline
    from diffusers.utils import dynamic_modules_utils

    import converter.lens  # noqa: F401 - diffusers does not know the classes of Lens, nor SDNQ

    source, release = shutil.copytree(tiny_repo, tmp_path / "source"), tmp_path / "out"
    edit_json(source / "model_index.json", _class_name=["pipeline_lens", "CustomPipeline"])
    base = "from converter.models.lens.pipeline import LensPipeline\nfrom .parts.names import NAME\n"
    (source / "parts").mkdir()
    (source / "parts" / "names.py").write_text("NAME = 'own'\n")
    (source / "pipeline_lens.py").write_text(f"{base}class CustomPipeline(LensPipeline):\n    own_name = NAME\n")
    (planned,) = plan(source).notes
    said = Notes()
    convert(source, release, reporter=said)
    names = "parts/names.py; pipeline_lens.py; loaders run it with trust_remote_code=True"
    assert said.texts == [f"Note: {planned}."] == [f"Note: code is copied, not run: {names}."]
    assert f"contains code, which was not run: {names}" in verify(release, load=True).notes
    make_card(release)
    assert (
        "code of the source model, which was copied and not run: `parts/names.py`, `pipeline_lens.py`"
        in (release / "README.md").read_text()
    )
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for folder in (source, release):
        pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
        assert pipeline.own_name == "own"
        with pytest.raises(ValueError, match="trust_remote_code"):
            DiffusionPipeline.from_pretrained(folder)
    (source / "pipeline_lens.py").unlink()
    assert "the source names code that does not exist: pipeline_lens.py" in plan(source).notes


def test_the_card_links_the_license_that_came_along(release: Path) -> None:
    for name in ("LICENSE.md", "USE_POLICY.md", "vae/license.txt"):
        list_file(release, name, b"terms")
    make_card(release)
    text = (release / "README.md").read_text()
    assert r"The terms of the source model are in [LICENSE.md](LICENSE.md), [USE\_POLICY.md](USE\_POLICY.md)." in text


def test_a_source_behind_links_is_not_overwritten(tmp_path: Path) -> None:
    real = save_model(tmp_path / "real", "LensTransformer2DModel")
    linked, repo = tmp_path / "linked", tmp_path / "repo"
    linked.mkdir()
    shutil.copy(real / "config.json", linked)
    (linked / WEIGHTS).symlink_to(real / WEIGHTS)
    repo.mkdir()
    (repo / "transformer").symlink_to(real)
    (repo / "model_index.json").write_text(json.dumps({"transformer": ["diffusers", "LensTransformer2DModel"]}))
    before = snapshot(real)
    for source, output in ((linked, real), (repo, real), (repo, real / "out")):
        with pytest.raises(OutputError, match="is inside the source, or the source is inside it"):
            convert(source, output, options=ConvertOptions(overwrite=True))
    assert snapshot(real) == before


def test_a_single_file_comes_alone(lens_source: Path, tmp_path: Path) -> None:
    shutil.copytree(lens_source, tmp_path / "downloads")
    (tmp_path / "downloads" / "passwords.txt").write_text("secret")
    convert(tmp_path / "downloads" / WEIGHTS, tmp_path / "downloads" / "out")
    assert "passwords.txt" not in snapshot(tmp_path / "downloads" / "out")
    # Nor does a folder that no config makes a component.
    (tmp_path / "downloads" / "config.json").unlink()
    assert not select_files([open_checkpoint(tmp_path / "downloads")]).files
    expected = weight_files(convert_default(lens_source, tmp_path / "expected"))
    assert weight_files(tmp_path / "downloads" / "out") == expected


def test_a_component_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_pipeline(tmp_path / "source")
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        # What a user without rights gets; root, who may run this, reads everything.
        if str(path).endswith("nested"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(MissingInput, match="nested: Permission denied"):
        convert(source, tmp_path / "out")
