"""The instructions of cards work, with nothing installed but what ``pip install lensconv`` installs."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from converter.rendering import render
from tests.conftest import ROOT, run_python

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


def published_requirements() -> Iterator[str]:
    """Names of the distributions that lensconv requires without extras, directly and through others."""
    waiting, seen = ["lensconv"], set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    yield from sorted(seen - {"lensconv"})


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to the published requirements and lensconv, and to nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    for name in published_requirements():
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


def test_the_usage_of_a_card_runs(tiny_release: Path, packages: Path, tmp_path: Path) -> None:
    text = render(
        "usage.md.jinja", repository=str(tiny_release), base_resolution=1024, aspect_ratio="2:1", steps=1, guidance=1.0
    )
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
