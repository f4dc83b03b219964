"""With nothing but what ``pip install .`` installs, cards and commands work, or name the extra they need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from converter.cli.main import COMMANDS
from converter.rehearsal.process import running_hub
from converter.rehearsal.settings import HubSettings
from converter.rendering import render
from tests.conftest import ROOT, list_file, run_python
from tests.expected import check_expected

#: What cards that are published import. These names must work in every later version.
PUBLISHED = """
import converter.lens
from converter.lens import LensGptOssEncoder, LensPipeline, LensTransformer2DModel
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repository}")
assert type(pipe) is LensPipeline is converter.lens.LensPipeline
assert type(pipe.transformer) is LensTransformer2DModel
assert type(pipe.text_encoder) is LensGptOssEncoder
"""


def required_by(name: str, seen: set[str]) -> set[str]:
    """Add what a distribution requires without extras, directly and through others."""
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        found = canonicalize_name(requirement.name)
        if found not in seen and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            seen.add(found)
            required_by(found, seen)
    return seen


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to the published requirements and lensconv, and to nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    for name in sorted(required_by("lensconv", set())):
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top in ("..", "__pycache__") or (folder / top).exists():
                continue
            (folder / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    (folder / "converter").symlink_to(ROOT / "converter")
    return folder


def run(program: str, packages: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    # Without the module site, the environment of the tests is not on the path.
    return run_python(program, flags=("-S",), cwd=folder, env=environment)


def test_only_the_published_requirements_are_there(packages: Path, tmp_path: Path) -> None:
    for name in ("pytest", "hypothesis", "peft", "coverage"):
        assert "ModuleNotFoundError" in run(f"import {name}", packages, tmp_path).stderr, name


def lensconv(packages: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run commands that are separated by None, in one process, up to the first that fails."""
    lists: list[list[str]] = [[]]
    for argument in arguments:
        lists += [[]] if argument is None else []
        lists[-1] += [] if argument is None else [str(argument)]
    program = (
        "import sys\nfrom converter.cli.main import run\nfrom converter.console import Console\n"
        f"sys.exit(next((code for arguments in {lists!r} if (code := run(arguments, Console()))), 0))"
    )
    return run(program, packages, folder)


def test_the_day_of_a_conversion_needs_no_extra(tiny_repo: Path, packages: Path, tmp_path: Path) -> None:
    assert not {"scipy", "skimage", "matplotlib", "jsonschema"} & {path.name for path in packages.iterdir()}
    commands: list[object] = ["plan", tiny_repo, None, "convert", tiny_repo, "out", None]
    commands += ["verify", "out", "--checksums", "--load", None, "verify", "out", "--against", tiny_repo, None]
    commands += ["generate", "out", "--prompt", "a cat", "--steps", 1, "--out", "cat.png"]
    commands += ["--height", 64, "--width", 64]
    done = lensconv(packages, tmp_path, *commands)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cat.png").is_file()


def test_a_release_is_published_without_an_extra(
    tiny_release: Path, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = tmp_path / "release"
    shutil.copytree(tiny_release, release)
    list_file(release, "README.md", b"---\nlicense: mit\n---\n# Tiny\n")
    with running_hub(HubSettings(tmp_path / "hub")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.account.token)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        publish = ("publish", release, f"{hub.account.name}/tiny")
        address = f"hf://{hub.account.name}/tiny"
        done = lensconv(
            packages, tmp_path, *publish, "--dry-run", None, *publish, None, "verify", address, "--against", release
        )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        *(
            (line, "measure")
            for line in ("bench a b --out c", "evidence a", "report a", "grid a", "charts a", "compare a b")
        ),
        *((line, "measure") for line in ("card a", "prompts import a --out b.toml")),
        *((line, "rehearsal") for line in ("publish a b/c --rehearse", "hub serve")),
    ],
)
def test_a_command_names_the_extra_that_it_needs(line: str, extra: str, packages: Path, tmp_path: Path) -> None:
    done = lensconv(packages, tmp_path, *line.split())
    assert done.returncode == 3, done.stderr
    assert f"'.[{extra}]'" in done.stderr
    assert not any(tmp_path.iterdir())


def test_help_needs_no_extra(packages: Path, tmp_path: Path) -> None:
    helps = [(name, "--help") for name in COMMANDS]
    done = lensconv(packages, tmp_path, *(argument for pair in helps for argument in (*pair, None)), "--help")
    assert done.returncode == 0, done.stderr


def test_the_usage_of_a_card_runs(tiny_release: Path, packages: Path, tmp_path: Path) -> None:
    arguments = {"base_resolution": 1024, "aspect_ratio": '"2:1"', "num_inference_steps": 1, "guidance_scale": 1.0}
    text = render("usage.md.jinja", repository=str(tiny_release), arguments=arguments)
    check_expected("usage.md", text.replace(str(tiny_release), "owner/name"))
    programs = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(programs) == 2
    programs.insert(0, PUBLISHED.format(repository=tiny_release))
    # In one process, since importing takes longer than generating; each program has its own names.
    done = run(f"for program in {programs!r}:\n    exec(program, {{}})", packages, tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "cat.png") as first, Image.open(tmp_path / "cat-too.png") as second:
        assert first.size == second.size == (1472, 736)
        # The same image, unless the day ended in between: prompts are encoded with the date.
        assert np.abs(np.asarray(first).astype(int) - np.asarray(second)).mean() < 10
