"""The wheel holds what the code looks for, and the README's commands work."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest

from converter.cli.main import cli
from converter.rendering import render
from scripts.benchmark import BEGIN, END, summarise
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(folder),
            str(copy_of_the_source(folder)),
        ],
        check=True,
        capture_output=True,
    )
    (found,) = folder.glob("*.whl")
    return found


def copy_of_the_source(folder: Path) -> Path:
    """What a build needs, elsewhere, so that it leaves nothing in the repository."""
    copy = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("converter", "templates"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, copy / name)
    return copy


def test_everything_is_in_the_wheel(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "converter").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {f"converter/templates/{path.name}" for path in (ROOT / "templates").iterdir() if path.is_file()}
    assert names == expected


def test_templates_recipes_and_schemas_are_found_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = """
from converter.rendering import TEMPLATES_PACKAGE, render
from converter.conversion.recipe.recipe import builtin_recipes
from converter.schemas import NAMES, load_schema
from importlib import resources
import converter
assert converter.__file__.startswith(__import__("os").getcwd()), converter.__file__
print(len(builtin_recipes()), len([load_schema(name) for name in NAMES]))
print(sorted(entry.name for entry in resources.files(TEMPLATES_PACKAGE).iterdir() if entry.name.endswith(".jinja")))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "3 23"
    for name in ("benchmark_table.md.jinja", "gpt_oss_chat.jinja", "usage.md.jinja"):
        assert name in done.stdout


def test_the_commands_and_the_python_of_the_readme_work(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    section = text.partition("\n## Use\n")[2].partition("\n## Measuring\n")[0]
    shell, python = (re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL) for language in ("sh", "python"))
    lines = [shlex.split(line, comments=True) for block in shell for line in block.splitlines()]
    assert {line[1] for line in lines} == {"synth", "plan", "convert", "verify", "generate"}
    runs = [[*line[1:], *(["--layers", "1"] if line[1] == "synth" else [])] for line in lines]
    assert python
    # One process for all of it, each part of which would spend its time on imports.
    program = (
        "from converter.cli.main import run\nfrom converter.console import Console\n"
        f"for line in {runs!r}:\n    assert run(line, Console()) == 0, line\n"
        f"for program in {python!r}:\n    exec(program, {{}})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


def test_the_commands_that_measure_are_those_of_the_demo() -> None:
    """And those that publish. They take minutes, CI runs the demo, and the world's Hub is not everywhere."""
    section = (ROOT / "README.md").read_text().partition("\n## Measuring\n")[2].partition("\n## Recipes\n")[0]
    text = (ROOT / "scripts" / "demo").read_text().replace("\\\n", "")
    demo = [shlex.split(line)[:2] for line in text.splitlines() if "lensconv" in line]
    names = []
    for block in re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL):
        for line in block.splitlines():
            program, name, *words = shlex.split(line, comments=True)
            assert program == "lensconv"
            command = cli.get_command(click.Context(cli), name)
            assert command is not None
            command.make_context(name, words, parent=cli.make_context("lensconv", [name, "--help"]))
            assert ["lensconv", name] in demo or name == "prompts"
            names.append(name)
    publishing = ["card", "publish", "publish", "publish", "verify"]
    assert names == ["bench", "evidence", "grid", "charts", "prompts", *publishing]


def test_the_readme_shows_figures_that_were_measured() -> None:
    """The table between the marks is what the template makes of the measurements in the repository."""
    result = json.loads((ROOT / "benchmarks" / "conversion.json").read_text())
    table = render("benchmark_table.md.jinja", **result, **summarise(result))
    assert f"{BEGIN}\n{table}{END}" in (ROOT / "README.md").read_text()
    assert result["identical_bytes"] is True
