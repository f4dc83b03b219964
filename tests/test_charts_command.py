"""``lensconv charts``: the files, which have the same bytes every time, and what is refused."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from PIL import Image

from converter.errors import DependencyError, EvidenceError, MissingInput, OutputError
from converter.measurement.evidence.names import MATRIX_NAME, WEIGHTS_NAME
from converter.presentation.charts.draw_charts import CHARTS_FOLDER, draw_charts
from converter.presentation.charts.library import traceless_import
from converter.presentation.charts.style import DARK, LIGHT, WIDTH
from tests.charts import NAMES, full_evidence, matrix, weights, write
from tests.conftest import ROOT, Lensconv, names_in, run_python, snapshot
from tests.expected import check_expected
from tests.forms import accepted

FIDELITY = {WEIGHTS_NAME: weights(attn=(21.0, 20.0, 0.9))}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with full evidence and its charts, and the report."""
    folder = write(tmp_path_factory.mktemp("charts") / "evidence", full_evidence())
    return folder, draw_charts(folder).to_dict()


def test_every_chart_is_drawn_in_two_formats_and_two_themes(drawn: tuple[Path, dict[str, Any]]) -> None:
    folder, report = drawn
    assert accepted(report, "charts") == report["left_out"] == []
    listed = sorted(file for entry in report["charts"] for file in entry["files"])
    kinds = ("light.svg", "light.png", "dark.svg", "dark.png")
    assert listed == sorted(f"assets/charts/{name}-{kind}" for name in NAMES for kind in kinds)
    assert names_in(folder / CHARTS_FOLDER) == sorted(Path(file).name for file in listed)
    for file in listed:
        content = (folder / file).read_bytes()
        if file.endswith(".svg"):
            assert len(content) < 200_000, file
            ElementTree.fromstring(content)  # noqa: S314 - made a moment ago
            assert b"<text" not in content
            assert b"Matplotlib" not in content
            assert not re.search(rb"\d\d:\d\d:\d\d", content)
        else:
            assert len(content) < 60_000, file
            with Image.open(io.BytesIO(content)) as image:
                theme = LIGHT if "-light" in file else DARK
                assert (image.width, {*image.info}) == (WIDTH, {"exif"})
                pixels = image.convert("RGB")
                expected = tuple(int(theme.background[place : place + 2], 16) for place in (1, 3, 5))
                assert pixels.getpixel((0, 0)) == pixels.getpixel((WIDTH - 1, image.height - 1)) == expected


def test_two_processes_write_the_same_bytes_and_leave_nothing_else(
    drawn: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Whatever the user's own settings of matplotlib."""
    folder, _ = drawn
    for name in ("work", "temporary", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "work" / "matplotlibrc").write_text("savefig.dpi: 300\nsvg.fonttype: none\ntext.antialiased: False\n")
    code = "import logging, os, pathlib, sys; from converter.presentation.charts.draw_charts import draw_charts; "
    code += "draw_charts(pathlib.Path(sys.argv[1]), output=pathlib.Path(sys.argv[2])); "
    code += "assert 'MPLCONFIGDIR' not in os.environ and not logging.getLogger('matplotlib').level"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home")}
    environment["TMPDIR"] = str(tmp_path / "temporary")
    arguments = (folder, tmp_path / "output")
    done = run_python(code, *arguments, flags=("-W", "error"), env=environment, cwd=tmp_path / "work")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert snapshot(tmp_path / "output" / "assets") == snapshot(folder / "assets")
    left = {name: names_in(tmp_path / name) for name in ("output", "temporary", "home", "work")}
    assert left == {"output": ["assets"], "temporary": [], "home": [], "work": ["matplotlibrc"]}


def test_the_folder_that_the_user_chose_for_matplotlib_is_used(tmp_path: Path) -> None:
    code = "from converter.presentation.charts.library import traceless_import\nwith traceless_import():\n"
    code += "    import matplotlib\nprint(matplotlib.get_configdir())"
    done = run_python(code, env={**os.environ, "MPLCONFIGDIR": str(tmp_path)})
    assert done.stdout == f"{tmp_path}\n", done.stderr


def test_the_command(tmp_path: Path, lensconv: Lensconv) -> None:
    folder = write(tmp_path / "evidence", FIDELITY)
    outcome = lensconv("charts", folder, "--out", tmp_path / "other" / "place", "--json")
    assert accepted(outcome.result, "charts") == []
    (tmp_path / "out").symlink_to(tmp_path / "other")
    shown = "".join(lensconv("charts", folder, "--out", tmp_path / "out" / "place").stderr.split())
    assert shown.endswith(f"{tmp_path}/out/place/{CHARTS_FOLDER}:fidelity,4files.")
    check_expected("charts/command.txt", f"{json.dumps(outcome.result)}\n{' | '.join(outcome.stderr.splitlines())}\n")
    assert names_in(folder) == [WEIGHTS_NAME]
    files = [Path(file).name for file in outcome.result["charts"][0]["files"]]
    assert names_in(tmp_path / "other" / "place" / CHARTS_FOLDER) == sorted(files)
    assert "MPLCONFIGDIR" not in os.environ or os.environ["MPLCONFIGDIR"]
    assert matplotlib.rcParams["svg.hashsalt"] is None


def test_what_is_in_the_place_of_charts(tmp_path: Path, lensconv: Lensconv) -> None:
    """A chart whose measurements are gone and a link in place of a chart do not stay; other files and folders do."""
    folder = write(tmp_path / "evidence", FIDELITY)
    place = folder / CHARTS_FOLDER
    (place / "memory-dark.png").mkdir(parents=True)
    kept = ("time.svg", "footprint-dark.jpg", "time-light.png.bak", "my-time-light.png", "memory-dark.png")
    for name in ("time-dark.svg", "memory-light.png", "footprint-dark.png", *kept[:4]):
        (place / name).write_text("")
    (tmp_path / "victim").write_text("untouched")
    (place / "fidelity-light.svg").symlink_to(tmp_path / "victim")
    (place / "time-dark.png").symlink_to("nothing")
    assert lensconv("charts", folder).code == 0
    kinds = [f"{theme}.{kind}" for theme in ("dark", "light") for kind in ("png", "svg")]
    assert names_in(place) == sorted([*(f"fidelity-{kind}" for kind in kinds), *kept])
    assert (tmp_path / "victim").read_text() == "untouched"
    assert not (place / "fidelity-light.svg").is_symlink()
    write(folder, {MATRIX_NAME: matrix({"P01": (1.0, 2.0)})})
    (folder / WEIGHTS_NAME).unlink()
    assert lensconv("charts", folder).code == 0
    assert names_in(place) == sorted([*(f"time-{kind}" for kind in kinds), *kept])


def test_what_cannot_be_used_has_its_exit_code(tmp_path: Path) -> None:
    write(tmp_path / "failed", {MATRIX_NAME: matrix({"P01": (None, None)})})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / MATRIX_NAME).write_text("{}")
    for name, kind in (("missing", MissingInput), ("broken", EvidenceError), ("failed", MissingInput)):
        with pytest.raises(kind) as caught:
            draw_charts(tmp_path / name)
        assert caught.value.exit_code == 2
    assert f"; time: every measurement in {MATRIX_NAME} failed; memory: none of " in caught.value.message
    assert "lensconv bench" in caught.value.hint
    assert names_in(tmp_path / "failed") == [MATRIX_NAME]
    with pytest.raises(DependencyError, match=r"^matplotlib cannot be imported: no such thing$"), traceless_import():
        raise ImportError("no such thing")


@pytest.mark.parametrize("link", ["assets", "assets/charts"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, link: str) -> None:
    folder = write(tmp_path / "evidence", FIDELITY)
    (tmp_path / "elsewhere").mkdir()
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=", outside of"):
        draw_charts(folder)
    assert names_in(tmp_path / "elsewhere") == []
    (folder / link).unlink()
    (folder / link).write_text("a file")
    with pytest.raises(OutputError):
        draw_charts(folder)
