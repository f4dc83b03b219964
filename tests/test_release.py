"""What comes along into a release, and what a release may replace."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from converter import ConvertOptions, Recipe, convert, plan
from converter.checkpoint.source import open_checkpoint
from converter.conversion.release.companions import find_companions
from converter.conversion.release.replacing import refuse_what_is_no_checkpoint
from converter.errors import DiskError, MissingInput, OutputError
from converter.synthesis.synthesize import synthesize
from tests.conftest import names_in, snapshot
from tests.reference import weight_files
from tests.tiny_models import WEIGHTS, convert_default, make_pipeline, save_model


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
    assert not any(companion.can_share for companion in find_companions(open_checkpoint(source), Path("/proc")))


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
    plain = make_pipeline(tmp_path / "plain")
    repo = tmp_path / "hub" / "models--a--b"
    (repo / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in plain.rglob("*") if path.is_file())):
        link = repo / "snapshots" / "0123" / file.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, repo / "blobs" / f"{number}")
        link.symlink_to(os.path.relpath(repo / "blobs" / f"{number}", link.parent))
    convert(repo / "snapshots" / "0123", tmp_path / "out")
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
    assert find_companions(open_checkpoint(tmp_path / "downloads"), tmp_path) == []
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
