"""The wheel contains what the code looks for."""

from __future__ import annotations

import ast
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from converter.schemas import NAMES
from tests.conftest import ROOT, names_in, obey_permissions, run_program, run_python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the build leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("converter", "templates"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, folder / "source" / name)
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source")
    assert run_program(*build).returncode == 0
    (found,) = folder.glob("*.whl")
    return found


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
    """Where nothing can be written beside the kernels, their compiled code is written nowhere else."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    (tmp_path / "converter" / "conversion" / "kernels").chmod(0o555)
    before = names_in(tmp_path)
    program = """
from converter.rendering import render, template_folder
from converter.conversion.recipe.recipe import builtin_recipes
from converter.schemas import NAMES, load_schema
import converter.conversion.kernels.fused
assert converter.__file__.startswith(__import__("os").getcwd()), converter.__file__
print(len(builtin_recipes()), len([load_schema(name) for name in NAMES]))
print(*sorted(entry.name for entry in template_folder().iterdir() if entry.name.endswith(".jinja")))
"""
    done = run_python(program, cwd=tmp_path, env={"HOME": str(tmp_path / "home")}, preexec_fn=obey_permissions)
    templates = " ".join(sorted(path.name for path in (ROOT / "templates").glob("*.jinja")))
    assert (done.returncode, done.stdout) == (0, f"8 {len(NAMES)}\n{templates}\n"), done.stderr
    assert names_in(tmp_path) == before


def test_templates_are_found_where_nothing_is_installed() -> None:
    """A copy of the repository works with PYTHONPATH alone; ``-S`` leaves out what pip has installed as editable."""
    program = (
        "from converter.rendering import template_folder as folder; print(*(file.name for file in folder().iterdir()))"
    )
    packages = [path for path in sys.path if path.endswith("site-packages")]
    done = run_python(program, flags=("-S",), env={"PYTHONPATH": os.pathsep.join([str(ROOT), *packages])})
    assert done.returncode == 0, done.stderr
    assert "gpt_oss_chat.jinja" in done.stdout.split()


def test_modules_import_each_other_by_their_full_names() -> None:
    """``import-linter`` does not see what the package's own lazy names lead to."""
    for file in (ROOT / "converter").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.module == "converter"), file
