"""Whether SDNQ compiles, and how threads wait: lensconv decides outside of the environment, and users before it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.libraries import COMPILE_VARIABLE, load_library
from converter.measurement.benchmark.machine import describe_machine
from converter.measurement.benchmark.machine_probe import probe_machine
from converter.measurement.generation.loading import import_sdnq
from converter.measurement.generation.repo import open_pipeline
from tests.benches import LIMIT
from tests.conftest import ROOT, run_python, time_limit
from tests.reporters import Notes


def answer(program: str, *arguments: object, **variables: str) -> Any:
    """What a program prints as JSON, in a process with these variables and none of SDNQ besides."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SDNQ_")}
    done = run_python(program, *arguments, env={**kept, "PYTHONPATH": str(ROOT), **variables}, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


IMPORTS = """
import json, os, sys
from pathlib import Path
import torch
from converter.libraries import load_library, sdnq_compiles
from converter.measurement.generation.loading import import_sdnq
from converter.measurement.generation.repo import open_pipeline
from tests.reporters import Notes
sys.path.append(sys.argv[1])
before, said = dict(os.environ), Notes()
found = [load_library(name, compiles=name == "allowed").found for name in ("allowed", "denied")]
for repo in sys.argv[2:]:
    import_sdnq(open_pipeline(Path(repo)), torch.device("cuda"), said)
    found.append(sdnq_compiles())
print(json.dumps([dict(os.environ) == before, *found, *said.texts]))
"""


def test_imports_leave_the_environment_as_it_was(tiny_repo: Path, tiny_release: Path, tmp_path: Path) -> None:
    """Modules see lensconv's default while they are imported; SDNQ is imported for a quantized repo only."""
    for name in ("allowed", "denied"):
        (tmp_path / f"{name}.py").write_text(f"import os\nfound = os.environ.get('{COMPILE_VARIABLE}')\n")
    *found, said = answer(IMPORTS, tmp_path, tiny_repo, tiny_release, TORCH_COMPILE_DISABLE="1")
    assert found == [True, None, "0", None, False]
    assert said.startswith("SDNQ cannot compile its functions on this machine, so images take longer")


COMMANDS = """
import json, os, sys
from pathlib import Path
from converter.cli.main import run
from converter.console import Console
from converter.libraries import sdnq_compiles
before, out = dict(os.environ), Path(sys.argv[3])
(out / "int8.toml").write_text('name = "int8"\\n[sdnq]\\nweights_dtype = "int8"\\n')
codes = [
    run([*map(str, line), "--quiet"], Console(as_json=False, quiet=True))
    for line in (
        ("synth", out / "tiny", "--preset", "tiny"),
        ("plan", sys.argv[1], "--recipe", out / "int8.toml"),
        ("generate", sys.argv[2], "--prompt", "x", "--out", out / "x.png", "--height", 64, "--width", 64, "--steps", 1),
        ("convert", sys.argv[1], out / "int8", "--recipe", out / "int8.toml"),
        ("verify", out / "int8", "--load", "--against", sys.argv[1]),
    )
]
print(json.dumps([codes, sdnq_compiles(), dict(os.environ) == before]))
"""


@pytest.mark.long
def test_no_command_leaves_a_variable(lens_source: Path, tiny_release: Path, tmp_path: Path) -> None:
    assert answer(COMMANDS, lens_source, tiny_release, tmp_path) == [[0] * 5, False, True]


QUANTIZING = """
import json, sys
from pathlib import Path
from converter import Recipe, convert
from converter.libraries import load_library, sdnq_compiles
load_library("sdnq")
from torch._dynamo.utils import counters
from tests.conftest import call
from tests.reference import FURTHER_RECIPES, RECIPES
source, out = map(Path, sys.argv[1:])
for name in ("int8", "svd", "hadamard", "dynamic"):
    convert(source, out / name, Recipe(name, (RECIPES | FURTHER_RECIPES)[name]))
    assert call("verify", out / name, "--load", "--against", source).code == 0
before = dict(counters["stats"])
model_class = load_library("converter.lens").LensTransformer2DModel
model = load_library("sdnq.loader").load_sdnq_model(str(out / "int8"), model_cls=model_class)
layer = next(module for module in model.modules() if hasattr(module, "sdnq_dequantizer"))
layer.sdnq_dequantizer(layer.weight, layer.scale)
print(json.dumps([sdnq_compiles(), before, counters["stats"]["unique_graphs"]]))
"""


def test_nothing_is_quantized_by_compiled_functions(lens_source: Path, tmp_path: Path) -> None:
    """As after an image on a GPU: SDNQ compiles what layers compute, and their bytes could be others."""
    variables = {COMPILE_VARIABLE: "1", "SDNQ_COMPILE_KWARGS": '{"backend": "eager"}'}
    assert answer(QUANTIZING, lens_source, tmp_path, **variables) == [True, {}, 1]


@pytest.mark.long
def test_workers_have_the_variables_of_the_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And describe the same machine; the libraries of this process have been imported without leave to compile."""
    load_library("sdnq.common")
    monkeypatch.delenv(COMPILE_VARIABLE)
    monkeypatch.setenv("SDNQ_LOGGER_NAME", "/home/me/x")
    monkeypatch.setenv("SDNQ_SOMETHING", f"\x1b{'1' * 300}")
    with time_limit(LIMIT):
        found = probe_machine("cpu", lambda: None)
    shown = f"\\x1b{'1' * 96}…{'1' * 99}"
    assert found["sdnq_environment"] == {"SDNQ_LOGGER_NAME": "(a path)", "SDNQ_SOMETHING": shown}
    assert found["sdnq_compiles"] is False
    assert found == describe_machine("cpu")
    assert COMPILE_VARIABLE not in os.environ
    monkeypatch.setenv(COMPILE_VARIABLE, "1")
    with time_limit(LIMIT):
        found = probe_machine("cpu", lambda: None)
    assert (found["sdnq_environment"][COMPILE_VARIABLE], found["sdnq_compiles"]) == ("1", True)


def test_a_gpu_that_draws_without_compiled_functions_is_noted(
    tiny_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If SDNQ was imported too early, but not if the user does not want them."""
    load_library("sdnq")
    repo = open_pipeline(tiny_release)
    texts = []
    for device in ("cuda", "cpu"):
        import_sdnq(repo, torch.device(device), said := Notes())
        texts.append(said.texts)
    monkeypatch.delenv(COMPILE_VARIABLE)
    for device in ("cpu", "cuda"):
        import_sdnq(repo, torch.device(device), said := Notes())
        texts.append(said.texts)
    *silent, (note,) = texts
    assert silent == [[]] * 3
    assert note.endswith("so images take longer; generate in a new process to compile them")


#: Loads torch's OpenMP, which then says how its threads wait.
WAITS = """
import ctypes, importlib.util
from pathlib import Path
folder = Path(importlib.util.find_spec("torch").origin).parent
ctypes.CDLL(str(next(file for place in (folder, folder.parent / "torch.libs") for file in place.glob("**/libgomp*"))))
"""
LOADS = """
import json, os, sys
from converter.libraries import load_library, waiting_environment
sys.path.append(sys.argv[1])
before = dict(os.environ)
load_library("waits", generates=sys.argv[2] == "images")
print(json.dumps([dict(os.environ) == before, waiting_environment()]))
"""


@pytest.mark.parametrize(
    ("what", "wanted", "turns"),
    [
        ("images", {}, 1000),
        ("images", {"OMP_WAIT_POLICY": "PASSIVE"}, 0),
        ("images", {"OMP_WAIT_POLICY": "ACTIVE"}, None),
        ("images", {"GOMP_SPINCOUNT": "7"}, 7),
        ("weights", {}, None),
    ],
)
def test_waiting_threads_of_images_spin_for_long_only_where_the_user_wants_it(
    what: str, wanted: dict[str, str], turns: int | None, tmp_path: Path
) -> None:
    """A conversion has a few large operations, and is left alone."""
    (tmp_path / "waits.py").write_text(WAITS)
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "VERBOSE", **wanted}
    done = run_python(LOADS, tmp_path, what, env=variables, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, wanted or {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}]
    (found,) = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    assert int(found) == turns if turns is not None else int(found) > 100_000
