"""The sheet of an ablation's images: every image at its place, in its own pixels or reduced, and what is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from converter.errors import EvidenceError, UsageError
from converter.measurement.evidence.files import write_evidence
from converter.measurement.evidence.names import ABLATION_NAME
from converter.measurement.evidence.origin import ablation_text, is_drawn_from
from converter.presentation.grid.ablation_sheet import _find_rows, _scale
from converter.presentation.grid.make_grid import make_grid
from tests import ablations
from tests.conftest import Lensconv, names_in, snapshot
from tests.forms import accepted
from tests.test_grid import make_bench

SHEET = "assets/ablation/ablation.webp"
PROMPTS = 3


def measured(
    folder: Path, size: tuple[int, int] = (64, 48), names: tuple[str, ...] = ("recipe", "all")
) -> dict[str, Any]:
    """An ablation with images of these variants, and one more whose images failed."""
    found = ablations.content(*(ablations.variant(name, ["attn"], rounding=name) for name in (*names, "broken")))
    rows = [(0.1 * number, 0.01 * number) for number in range(PROMPTS)]
    pairs = {name: [(pattern + place, rate) for pattern, rate in rows] for place, name in enumerate(names, 1)}
    ablations.with_images(found, pairs, [0.0] * PROMPTS, [(5.0, 0.0)] * PROMPTS)
    ablations.with_velocity(found, {names[0]: [0.05, 0.06, 0.055]})
    found["variants"][-1]["failed"] = {"images": "out of memory"}
    folder.mkdir(exist_ok=True)
    write_evidence(folder, ABLATION_NAME, ablations.draw_images(folder, found, size))
    return found


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def place(drawn: np.ndarray, image: np.ndarray) -> tuple[int, int]:
    """Upper left corner of an image of one color in a sheet; a lossy encoder changes colors at the edges."""
    height, width = image.shape[:2]
    same = (np.abs(drawn.astype(int) - image[0, 0]) <= 4).all(-1)
    rows, columns = (np.flatnonzero(same.sum(axis) > length / 2) for axis, length in ((1, width), (0, height)))
    assert abs(rows[-1] + 1 - rows[0] - height) <= 6
    assert abs(columns[-1] + 1 - columns[0] - width) <= 6
    return int(rows[0]), int(columns[0])


@pytest.mark.parametrize(("size", "scale"), [((64, 48), 1), ((1000, 400), 2)])
def test_every_image_is_at_its_place(tmp_path: Path, lensconv: Lensconv, size: tuple[int, int], scale: int) -> None:
    found = measured(tmp_path, size)
    outcome = lensconv("grid", tmp_path, "--json")
    assert outcome.code == 0, outcome.stderr
    assert accepted(outcome.result, "grid") == []
    assert {key: outcome.result[key] for key in ("sheets", "preview", "rows")} == {
        "sheets": [],
        "preview": None,
        "rows": 0,
    }
    sheet = outcome.result["ablation"]
    assert sheet["rows"] == ["Original", "Original, second seed", "recipe", "all", "broken"]
    assert (sheet["prompts"], sheet["missing_cells"]) == (["P01", "P02", "P03"], PROMPTS)
    assert (sheet["file"], sheet["scale"], sheet["lossless"]) == (SHEET, scale, scale == 1)
    content = (tmp_path / SHEET).read_bytes()
    drawn = pixels(tmp_path / SHEET)
    assert (drawn.shape, len(content)) == ((sheet["height"], sheet["width"], 3), sheet["bytes"])
    assert sheet["width"] <= 2560
    assert is_drawn_from(content, ablation_text(found))
    rows = [found["original_images"], found["baseline"]["prompts"]]
    rows += [made["images"]["prompts"] for made in found["variants"][:2]]
    corners = np.array(
        [
            [place(drawn, np.asarray(Image.fromarray(pixels(tmp_path / row["image"])).reduce(scale))) for row in listed]
            for listed in rows
        ]
    )
    # Rows are under each other, and columns beside each other, in the order of the prompts.
    assert (np.diff(corners[:, :, 0], axis=0) > size[1] // scale).all()
    assert (np.diff(corners[:, :, 1], axis=1) > size[0] // scale).all()
    assert (np.abs(corners[:, :, 0] - corners[:, :1, 0]) <= 6).all()
    assert (np.abs(corners[:, :, 1] - corners[:1, :, 1]) <= 6).all()
    before = snapshot(tmp_path)
    assert lensconv("grid", tmp_path).code == 0
    assert snapshot(tmp_path) == before


def test_what_is_said_of_a_sheet(tmp_path: Path, lensconv: Lensconv) -> None:
    """Also with a comparison grid in the same folder; what is missing has a box."""
    found = measured(make_bench(tmp_path, ((64, 64), (64, 64))))
    (tmp_path / found["variants"][1]["images"]["prompts"][0]["image"]).unlink()
    lines = lensconv("grid", tmp_path, "--out", tmp_path / "out").stderr.replace("\n", "")
    assert f"{tmp_path}/out/{SHEET}: " in lines
    assert ", lossless, 5 rows of 3 images.4 of these are missing." in lines
    assert names_in(tmp_path / "out/assets") == ["ablation", "comparison"]
    assert len(names_in(tmp_path / "out/assets/comparison")) == 2
    report = make_grid(tmp_path, output=tmp_path / "again").to_dict()
    assert (len(report["sheets"]), report["rows"], report["ablation"]["missing_cells"]) == (1, 1, 4)


def test_without_images_there_is_no_sheet(tmp_path: Path, lensconv: Lensconv) -> None:
    write_evidence(tmp_path, ABLATION_NAME, ablations.builtin())
    outcome = lensconv("grid", tmp_path, "--json")
    assert (outcome.code, outcome.result["error"]["type"]) == (2, "MissingInput")
    assert "comparison_matrix.json: no such file" in outcome.result["error"]["message"]
    assert names_in(tmp_path) == [ABLATION_NAME]


def test_images_that_are_not_those_that_were_measured(tmp_path: Path) -> None:
    found = measured(tmp_path)
    row = found["variants"][0]["images"]["prompts"][1]
    file = tmp_path / row["image"]
    kept = file.read_bytes()
    file.write_bytes(kept + b"\0")
    with pytest.raises(EvidenceError, match=r"is stale: its sha256 is not the one in ablation\.json") as caught:
        make_grid(tmp_path)
    assert caught.value.hint == "Restore the image that was measured, or measure again with `lensconv ablate`."
    file.write_bytes(kept[:40])
    row["image_sha256"] = hashlib.sha256(kept[:40]).hexdigest()
    (tmp_path / ABLATION_NAME).write_text(json.dumps(found))
    with pytest.raises(EvidenceError, match="is not a complete PNG"):
        make_grid(tmp_path)
    row["image"] = "../outside.png"
    (tmp_path / ABLATION_NAME).write_text(json.dumps(found))
    with pytest.raises(EvidenceError, match=r"ablation\.json: image \.\./outside\.png is not a path inside the folder"):
        make_grid(tmp_path)
    assert not (tmp_path / "assets").exists()


def test_hostile_names_are_written_as_text(tmp_path: Path) -> None:
    names = ("\u202e" + "Ж" * 90, "a\x1b[31m", " ", "漢字")
    with pytest.raises(EvidenceError):
        measured(tmp_path, names=names)
    found = measured(tmp_path, names=names[:2])
    found["variants"][2]["failed"]["images"] = "x\n" * 5000
    write_evidence(tmp_path, ABLATION_NAME, found)
    sheet = make_grid(tmp_path).ablation
    assert sheet is not None
    drawn = pixels(tmp_path / SHEET)
    # No letter is beyond the margin.
    assert (drawn[:, -5:] == drawn[0, 0]).all()


def test_a_sheet_is_as_small_as_it_must_be(tmp_path: Path) -> None:
    """Its width and its height are limited; the scale is the least whole number."""
    found = measured(tmp_path, (16, 900), ("recipe", *(f"v{number}" for number in range(30))))
    rows = list(_find_rows(tmp_path, found))[:-1]
    for scale, count in ((1, 17), (2, 18)):
        chosen, layout = _scale(rows[:count])
        assert chosen == scale
        assert layout.size.height <= 16383
    with pytest.raises(UsageError, match="too many for one picture"):
        _scale(rows[:1] * 2000)


def test_the_origin_of_a_sheet_is_all_that_it_shows(tmp_path: Path) -> None:
    found = measured(tmp_path)
    text = ablation_text(found)
    edits: list[Callable[[], object]] = [
        lambda: found["variants"][0].update(name="x"),
        lambda: found["variants"][2].update(failed={}),
        lambda: found["original_images"][0].update(image_sha256="0" * 64),
        lambda: found["baseline"]["prompts"][0].update(seed=5),
        lambda: found["variants"].reverse(),
    ]
    for edit in edits:
        edit()
        assert ablation_text(found) != text
        text = ablation_text(found)
