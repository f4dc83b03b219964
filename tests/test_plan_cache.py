"""Plans that are kept for later conversions: what they save, when they apply, and what is done with bad entries."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, convert
from converter.conversion import plan_cache, plans
from converter.conversion.plan_cache import MAXIMUM_ENTRIES, PlanCache, cache_folder
from converter.conversion.planner_process import PlanAnswer, plan_here
from converter.conversion.planning.plan_json import plan_from_json, plan_to_json
from converter.conversion.recipe.recipe import Rule
from converter.conversion.request import Target, open_request
from tests.conftest import (
    Lensconv,
    edit_json,
    names_in,
    run_process,
    run_python,
    snapshot,
)
from tests.tiny_models import save_model

#: Converts, and prints which of the heavy libraries were imported.
CONVERT = """
import sys
from pathlib import Path
from converter import ConvertOptions, convert
source, output, *recipe = sys.argv[1:]
convert(Path(source), Path(output), *recipe)
print(*({"torch", "diffusers", "sdnq"} & sys.modules.keys()))
"""


def target_of(source: Path, recipe: str | None = None, *settings: str) -> Target:
    return open_request(source, recipe, ConvertOptions(settings=settings)).main


def entries() -> list[Path]:
    return sorted(cache_folder().rglob("*.json"))


@pytest.fixture
def kept(lens_source: Path) -> tuple[Target, PlanAnswer, Path]:
    """A target, its plan, and the entry that keeps it."""
    target = target_of(lens_source)
    answer = plan_here(target)
    PlanCache(cache_folder()).keep(target, answer)
    (file,) = entries()
    return target, answer, file


@pytest.fixture
def plans_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let conversions plan in this process as if it had not imported SDNQ."""
    monkeypatch.setattr(plans, "are_untouched", lambda: True)
    monkeypatch.setattr(plans, "predict_plan", lambda *_: None)


@pytest.mark.parametrize("recipe", [None, pytest.param("sdnq-int8", marks=pytest.mark.long)])
def test_a_later_conversion_does_without_sdnq_where_the_kernel_does(
    lens_source: Path, tmp_path: Path, recipe: str | None
) -> None:
    loaded = []
    for name in ("first", "second"):
        finished = run_python(CONVERT, lens_source, tmp_path / name, *([recipe] if recipe else []))
        assert not finished.stderr, finished.stderr
        loaded.append(set(finished.stdout.split()))
    # SDNQ plans in a second process where its plan can be predicted; its own functions quantize to int8.
    assert loaded == ([set(), set()] if recipe is None else [{"torch", "diffusers", "sdnq"}] * 2)
    assert len(entries()) == 1
    assert snapshot(tmp_path / "first") == snapshot(tmp_path / "second")


@pytest.mark.usefixtures("plans_here")
def test_nothing_plans_when_the_plan_was_kept(
    lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(lens_source, tmp_path / "first")
    monkeypatch.setattr(plans, "plan_here", None)
    convert(lens_source, tmp_path / "second")
    assert snapshot(tmp_path / "first") == snapshot(tmp_path / "second")
    with pytest.raises(TypeError):
        convert(lens_source, tmp_path / "third", options=ConvertOptions(cache=False))


@pytest.mark.long
def test_an_interrupted_first_run_continues_with_the_kept_plan(lens_source: Path, tmp_path: Path) -> None:
    """A second run that begins without the planner finds what the first one finished."""
    assert run_process("convert", lens_source, tmp_path / "whole").returncode == 0
    stopping = f"""
import os, signal
from converter.checkpoint.staging import StagedComponent
noted = StagedComponent.note
def note(self, tensor, **facts):
    noted(self, tensor, **facts)
    if len(self.finished) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
StagedComponent.note = note
{CONVERT}"""
    shutil.rmtree(cache_folder())
    assert run_python(stopping, lens_source, tmp_path / "out").returncode < 0
    assert not entries()
    target = target_of(lens_source)
    PlanCache(cache_folder()).keep(target, plan_here(target))
    finished = run_process("convert", lens_source, tmp_path / "out", "--json")
    assert json.loads(finished.stdout)["resumed_tensors"] >= 20
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


@pytest.mark.long
def test_several_components(several: Path, several_release: Path, tmp_path: Path) -> None:
    line = ["convert", several, tmp_path / "out", *(f"--component={name}" for name in names_in(several_release))]
    line = [word for word in line if not str(word).endswith((".json", "scheduler", "vae"))]
    for _ in range(2):
        assert run_process(*line, "--overwrite").returncode == 0
    weights = {name: content for name, content in snapshot(several_release).items() if "safetensors" in name}
    assert weights.items() <= snapshot(tmp_path / "out").items()


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "UNet2DConditionModel", "T5EncoderModel"])
def test_json_has_the_whole_plan(name: str, tmp_path: Path) -> None:
    source = save_model(tmp_path / name, name)
    target = target_of(source)
    optional = replace(target, recipe=target.recipe.with_rules([Rule("nothing.*", keep=True, optional=True)]))
    answer = plan_here(optional)
    assert answer.plan.unmatched_rules
    assert plan_from_json(json.loads(json.dumps(plan_to_json(answer.plan)))) == answer.plan
    cache = PlanCache(cache_folder())
    assert cache.find(optional) is None
    cache.keep(optional, answer)
    assert cache.find(optional) == answer
    assert cache.find(target) is None


def test_that_the_kernel_differs_is_kept_as_well(kept: tuple[Target, PlanAnswer, Path]) -> None:
    target, answer, _ = kept
    cache = PlanCache(cache_folder())
    assert cache.find(target) == answer
    cache.keep(target, replace(answer, kernel_agrees=False))
    assert cache.find(target) == replace(answer, kernel_agrees=False)


def test_everything_that_decides_a_plan_is_in_its_key(
    kept: tuple[Target, PlanAnswer, Path], lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, answer, _ = kept

    def find(target: Target) -> PlanAnswer | None:
        return PlanCache(cache_folder()).find(target)

    def changed(change: Callable[[Path], object]) -> Target:
        copy = shutil.copytree(lens_source, tmp_path / "changed", dirs_exist_ok=True)
        change(copy)
        return target_of(copy)

    def retype(folder: Path) -> None:
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        tensors["img_in.bias"] = tensors["img_in.bias"].to(torch.float16)
        save_file(tensors, file)

    def move(folder: Path) -> None:
        (file,) = folder.glob("*.safetensors")
        tensors = {name: value + 1 for name, value in load_file(file).items()}
        save_file(tensors, file)

    assert find(changed(move)) == answer, "other numbers in another folder"
    assert find(changed(retype)) is None
    assert find(changed(lambda folder: edit_json(folder / "config.json", axes_dims_rope=[8, 4, 4]))) is None
    assert find(target_of(lens_source, "sdnq-uint4")) is None
    assert find(target_of(lens_source, None, "*.attn.*=keep")) is None
    for variable in ("SDNQ_USE_TRITON_MM", "NUMBA_CPU_NAME", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(variable, "0")
        assert find(target) is None, variable
        monkeypatch.delenv(variable)
    assert find(target) == answer


def test_an_import_that_sets_a_variable_does_not_change_the_key(
    lens_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing SDNQ lets torch set TORCHINDUCTOR_CACHE_DIR, after the plan was looked for and before it is kept."""
    target = target_of(lens_source)
    cache = PlanCache(cache_folder())
    assert cache.find(target) is None
    answer = plan_here(target)
    with monkeypatch.context() as patched:
        patched.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
        cache.keep(target, answer)
    assert PlanCache(cache_folder()).find(target) == answer


@pytest.mark.long
def test_a_model_whose_plan_is_not_predicted(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "FluxTransformer2DModel")
    loaded = []
    for name in ("first", "second"):
        finished = run_python(CONVERT, source, tmp_path / name)
        assert not finished.stderr, finished.stderr
        loaded.append(set(finished.stdout.split()))
    assert loaded == [{"torch", "diffusers", "sdnq"}, set()]
    assert snapshot(tmp_path / "first") == snapshot(tmp_path / "second")


@pytest.mark.parametrize("package", ["sdnq", "numba"])
def test_a_package_that_may_have_changed_keeps_nothing(
    package: str, lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package in front of the installed one has its version, and perhaps other code."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    program = "from converter.conversion.fingerprint import fingerprint; print(fingerprint())"
    found = [run_python(program, env={**os.environ, "PYTHONPATH": path}).stdout for path in ("", str(tmp_path))]
    assert len(found[0].strip()) == 64
    assert found[1] == "None\n"
    monkeypatch.setattr(plan_cache, "fingerprint", lambda: None)
    target = target_of(lens_source)
    cache = PlanCache(cache_folder())
    cache.keep(target, plan_here(target))
    assert cache.find(target) is None
    assert not cache_folder().exists()


def test_the_code_of_sdnq_is_part_of_the_key(tmp_path: Path) -> None:
    """Somebody who changes the installed SDNQ gets new plans."""
    program = (
        "from converter.conversion import fingerprint as f; from pathlib import Path; import sys;"
        "f._folder = lambda name, found=f._folder: Path(sys.argv[1]) if name == 'sdnq' else found(name);"
        "f._package = lambda name: ['1'];"
        "print(f.fingerprint())"
    )
    (tmp_path / "common.py").write_text("limit = 1\n")
    before = run_python(program, tmp_path).stdout
    assert run_python(program, tmp_path).stdout == before
    (tmp_path / "common.py").write_text("limit = 2\n")
    assert run_python(program, tmp_path).stdout not in ("", before)


def spoilt(text: str) -> dict[str, Any]:
    """Ways to spoil an entry, as what is put in its place."""
    entry = json.loads(text)
    other = entry["content"].replace('"uint4"', '"int8"')
    assert other != entry["content"]

    def valid(content: str) -> str:
        return json.dumps({"sha256": hashlib.sha256(content.encode()).hexdigest(), "content": content})

    return {
        "nothing": "",
        "cut off": text[:-20],
        "a changed plan": json.dumps({**entry, "content": other}),
        "not UTF-8": b"\xff\xfe\x00",
        "a list": "[1, 2]",
        "too deep": "[" * 100_000,
        "no plan": valid("{}"),
        "not an object": valid("[]"),
        "another plan": valid(entry["content"].replace("transformer_blocks.0.", "transformer_blocks.7.")),
        "a folder": Path.mkdir,
        "a pipe": os.mkfifo,
        "a link to nothing": lambda file: file.symlink_to("nowhere"),
    }


@pytest.mark.parametrize("how", spoilt('{"content": "\\"uint4\\""}'))
def test_a_bad_entry_is_ignored_and_replaced(how: str, kept: tuple[Target, PlanAnswer, Path]) -> None:
    target, answer, file = kept
    content = spoilt(file.read_text())[how]
    file.unlink()
    if callable(content):
        content(file)
    elif isinstance(content, str):
        file.write_text(content)
    else:
        file.write_bytes(content)
    cache = PlanCache(cache_folder())
    assert cache.find(target) is None
    if how != "a folder":
        cache.keep(target, answer)
        assert cache.find(target) == answer


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_entry_of_another_user_is_ignored(kept: tuple[Target, PlanAnswer, Path]) -> None:
    target, _, file = kept
    os.chown(file, 12345, 12345)
    assert PlanCache(cache_folder()).find(target) is None


def test_too_large_an_entry_is_not_read(kept: tuple[Target, PlanAnswer, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    target, _, file = kept
    monkeypatch.setattr(plan_cache, "MAXIMUM_BYTES", file.stat().st_size - 1)
    assert PlanCache(cache_folder()).find(target) is None


def test_the_oldest_entries_are_removed(kept: tuple[Target, PlanAnswer, Path]) -> None:
    target, answer, file = kept
    for number in range(MAXIMUM_ENTRIES + 5):
        other = file.with_name(f"{number}.json")
        other.write_text("")
        os.utime(other, (number, number))
    PlanCache(cache_folder()).keep(target, answer)
    left = {entry.name for entry in entries()}
    assert len(left) == MAXIMUM_ENTRIES
    assert file.name in left
    assert "0.json" not in left


def test_a_plan_that_depends_on_numbers_is_not_kept(tmp_path: Path) -> None:
    """Tied tensors that a file has twice are saved once if they are equal."""
    source = save_model(tmp_path / "tied", "T5EncoderModel")
    (file,) = source.glob("*.safetensors")
    tensors = load_file(file)
    twice = {"shared.weight": "encoder.embed_tokens.weight"}
    for name, alias in twice.items():
        there = name if name in tensors else alias
        tensors |= {name: tensors[there], alias: tensors[there].clone()}
    save_file(tensors, file, {"format": "pt"})
    target = target_of(source)
    answer = plan_here(target)
    assert answer.plan.depends_on_numbers
    PlanCache(cache_folder()).keep(target, answer)
    assert not entries()


@pytest.mark.usefixtures("plans_here")
def test_without_the_cache_nothing_is_read_or_kept(lens_source: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    assert lensconv("convert", lens_source, tmp_path / "out", "--no-cache").code == 0
    assert not entries()
    assert lensconv("convert", lens_source, tmp_path / "other").code == 0
    assert len(entries()) == 1


def test_a_program_that_has_imported_sdnq_keeps_nothing(lens_source: Path, tmp_path: Path) -> None:
    assert "sdnq" in sys.modules
    convert(lens_source, tmp_path / "out")
    assert not entries()


@pytest.mark.usefixtures("plans_here")
def test_a_folder_that_cannot_be_written_is_a_note(
    lens_source: Path, tmp_path: Path, lensconv: Lensconv, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    monkeypatch.setenv("LENSCONV_CACHE", str(taken))
    finished = lensconv("convert", lens_source, tmp_path / "out")
    assert finished.code == 0
    text = " ".join(finished.stderr.split())
    assert f"Note: SDNQ's plan is not kept for later conversions. {taken / 'plans'}: cannot be written" in text


def test_the_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LENSCONV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lensconv"
