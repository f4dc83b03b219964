"""``lensconv grid``: images side by side, pixel for pixel, and one line for everything that is no image."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from converter.errors import EvidenceError
from converter.measurement.evidence.names import MODELS
from converter.measurement.evidence.origin import grid_text, is_drawn_from
from converter.models.lens.resolutions import RESOLUTIONS
from converter.presentation.grid.cells import find_rows, read_pixels
from converter.presentation.grid.drawing import BACKGROUND
from converter.presentation.grid.layout import SIDE_LIMIT, Measures, Size, preview_scale, ratio_name, split_rows
from converter.schemas import load_schema
from tests import pictures
from tests.conftest import Lensconv, edit_json, names_in, snapshot
from tests.published import published_summary

Shape = tuple[int, int]
PICTURES = "assets/comparison"
SHEET = f"{PICTURES}/comparison_grid_1to1_q98.webp"
PREVIEW = f"{PICTURES}/comparison_preview.webp"


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return pictures.noise(seed, height, width)


def slope(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A picture without edges, of which WebP loses little."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + seed) + np.cos(y / 13 + seed), x / width + y / height, np.sin((x + y) / 17 - seed)]
    return (np.stack(waves, -1) * 50 + 110).astype(np.uint8)


def make_bench(
    folder: Path,
    *sizes: tuple[Shape, Shape],
    paint: Callable[[int, int, int], np.ndarray] = noise,
    scenario: str = "Red Cube",
) -> Path:
    """A folder as ``lensconv bench`` makes it: a row for each pair of sizes."""
    prompts = []
    for index, shapes in enumerate(sizes):
        row: dict[str, Any] = {"id": f"P{index + 1:02}", "scenario": scenario, "seed": 301 + index}
        for model, shape in zip(MODELS, shapes, strict=True):
            name = f"images/{model}/{row['id']}-{row['seed']}-{model}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(paint(*shape, index + len(model))).save(folder / name, compress_level=1)
            digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            row[model] = {"time_s": 1.5, "peak_allocated_gb": 2.0, "image": name, "image_sha256": digest}
        prompts.append(row)
    (folder / "comparison_matrix.json").write_text(json.dumps({"schema": "lensconv.matrix/1", "prompts": prompts}))
    return folder


def edit_side(folder: Path, row: int, model: str, side: dict[str, Any]) -> None:
    file = folder / "comparison_matrix.json"
    content = json.loads(file.read_text())
    content["prompts"][row][model] = side
    file.write_text(json.dumps(content))


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def cut(picture: np.ndarray, cell: dict[str, Any]) -> np.ndarray:
    return picture[cell["y"] : cell["y"] + cell["height"], cell["x"] : cell["x"] + cell["width"]]


def image_of(folder: Path, cell: dict[str, Any]) -> np.ndarray:
    return pixels(next((folder / "images" / cell["model"]).glob(f"{cell['id']}-*.png")))


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def draw(lensconv: Lensconv, folder: Path, *options: object) -> dict[str, Any]:
    outcome = lensconv("grid", folder, *options, "--json")
    assert outcome.code == 0, outcome.stderr
    jsonschema.validate(outcome.result, load_schema("grid"))
    return outcome.result


def refused(lensconv: Lensconv, folder: Path, *options: object) -> str:
    """The one line that the command ends with."""
    before = snapshot(folder) if folder.is_dir() else {}
    outcome = lensconv("grid", folder, *options)
    assert outcome.code == 2, outcome.stderr
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.count("\n") == 1
    assert (snapshot(folder) if folder.is_dir() else {}) == before
    return outcome.stderr


def test_the_cells_of_a_lossless_preview_are_the_images(tmp_path: Path, lensconv: Lensconv) -> None:
    folder = make_bench(tmp_path, *[((96, 96), (96, 96))] * 3)
    result = draw(lensconv, folder)
    preview = pixels(folder / result["preview"]["file"])
    expected = {"file": PREVIEW, "width": preview.shape[1], "height": preview.shape[0], "scale": 1, "lossless": True}
    assert result["preview"] == expected | {name: result["preview"][name] for name in ("bytes", "cells")}
    assert [(cell["id"], cell["model"]) for cell in result["preview"]["cells"]] == [
        (prompt, model) for prompt in ("P01", "P02", "P03") for model in MODELS
    ]
    for cell in result["preview"]["cells"]:
        assert np.array_equal(cut(preview, cell), image_of(folder, cell))
    [sheet] = result["sheets"]
    assert sheet["file"] == SHEET
    assert sheet["cells"] == result["preview"]["cells"]
    assert (sheet["height"], sheet["width"], 3) == pixels(folder / SHEET).shape == preview.shape
    for file in (sheet, result["preview"]):
        assert file["bytes"] == (folder / file["file"]).stat().st_size
    assert (result["rows"], result["missing_cells"]) == (3, 0)
    assert result["images"] == {"original": 3, "quantized": 3}
    assert names_in(folder / PICTURES) == [Path(SHEET).name, Path(PREVIEW).name]


def test_the_sheet_loses_little(tmp_path: Path, lensconv: Lensconv) -> None:
    folder = make_bench(tmp_path, *[((256, 256), (256, 256))] * 2, paint=slope)
    result = draw(lensconv, folder)
    sheet = pixels(folder / SHEET)
    for cell in result["sheets"][0]["cells"]:
        # Levels of 255; a cell that stands a single pixel further is no more the same.
        assert difference(cut(sheet, cell), image_of(folder, cell)) < 1.5
        for axis in (0, 1):
            assert difference(cut(np.roll(sheet, 1, axis), cell), image_of(folder, cell)) > 2


def test_two_runs_give_the_same_bytes_and_the_origin_alone(tmp_path: Path, lensconv: Lensconv) -> None:
    folder = make_bench(tmp_path / "bench", ((64, 64), (64, 64)))
    first = draw(lensconv, folder, "--out", tmp_path / "one")
    os.utime(folder / "images/original/P01-301-original.png", (1, 1))
    assert draw(lensconv, folder, "--out", tmp_path / "two") == first
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    assert names_in(folder) == ["comparison_matrix.json", "images"]
    matrix = json.loads((folder / "comparison_matrix.json").read_text())
    other = copy.deepcopy(matrix)
    other["prompts"][0]["quantized"]["image_sha256"] = "0" * 64
    for name, kind in ((SHEET, b"VP8 "), (PREVIEW, b"VP8L")):
        content = (tmp_path / "one" / name).read_bytes()
        assert chunks(content) == [b"VP8X", kind, b"EXIF"]
        assert is_drawn_from(content, grid_text(matrix))
        assert not is_drawn_from(content, grid_text(other))


def chunks(content: bytes) -> list[bytes]:
    """Names of the parts of a WebP file, by its container format."""
    names, place = [], 12
    while place < len(content):
        names.append(content[place : place + 4])
        length = struct.unpack("<I", content[place + 4 : place + 8])[0]
        place += 8 + length + length % 2
    return names


def test_a_wide_grid_is_reduced_by_a_whole_number(tmp_path: Path, lensconv: Lensconv) -> None:
    folder = make_bench(tmp_path, ((200, 100), (199, 101)), paint=slope)
    result = draw(lensconv, folder, "--preview-width", 200)
    preview = result["preview"]
    assert (preview["scale"], preview["lossless"]) == (4, False)
    assert preview["width"] <= 200
    assert result["sheets"][0]["file"].endswith("_2to1_q98.webp")
    for cell in preview["cells"]:
        image = np.asarray(Image.fromarray(image_of(folder, cell)).reduce(4))
        assert image.shape == (cell["height"], cell["width"], 3)
        assert difference(cut(pixels(folder / preview["file"]), cell), image) < 6
    assert "preview-width 20: too narrow" in refused(lensconv, folder, "--preview-width", 20)


def test_rows_are_split_evenly_over_sheets_that_webp_can_hold(tmp_path: Path, lensconv: Lensconv) -> None:
    folder = make_bench(tmp_path, *[((16, 4000), (16, 4000))] * 9, paint=slope)
    result = draw(lensconv, folder)
    assert [sheet["file"] for sheet in result["sheets"]] == [
        f"{PICTURES}/comparison_grid_1to250_q98-{number}of3.webp" for number in (1, 2, 3)
    ]
    assert [len(sheet["cells"]) for sheet in result["sheets"]] == [6, 6, 6]
    assert [cell["id"] for sheet in result["sheets"] for cell in sheet["cells"]] == [
        f"P{number:02}" for number in range(1, 10) for _ in MODELS
    ]
    for sheet in result["sheets"]:
        drawn = pixels(folder / sheet["file"])
        for cell in sheet["cells"]:
            assert difference(cut(drawn, cell), image_of(folder, cell)) < 6
    preview = result["preview"]
    # Two thousand pixels a row: eight rows are within the limit.
    assert (preview["scale"], len(preview["cells"])) == (2, 16)
    assert preview["height"] <= SIDE_LIMIT
    outcome = lensconv("grid", folder)
    assert "9 rows are split into 3 sheets" in outcome.stderr
    assert "the preview shows the first 8 of 9 rows" in outcome.stderr

    kept = ("comparison_grid_1to1_q98-old.webp", "comparison_grid_1to1_q90.webp", "mine.webp")
    for name in kept:
        (folder / PICTURES / name).write_bytes(b"kept")
    (folder / PICTURES / "comparison_grid_mixed_q98-2of2.webp").symlink_to(folder / PICTURES / "mine.webp")
    make_bench(folder, ((64, 64), (64, 64)))
    draw(lensconv, folder)
    assert names_in(folder / PICTURES) == sorted([*kept, Path(SHEET).name, Path(PREVIEW).name])


@pytest.mark.parametrize("shape", [(16, 16383), (8200, 8)])
def test_a_row_that_webp_cannot_hold_is_refused(tmp_path: Path, lensconv: Lensconv, shape: Shape) -> None:
    folder = make_bench(tmp_path, ((8, 8), (8, 8)), (shape, shape), paint=slope)
    assert f"{shape[0]}x{shape[1]} and {shape[0]}x{shape[1]} side by side" in refused(lensconv, folder)


def test_cells_of_several_sizes_keep_theirs(tmp_path: Path, lensconv: Lensconv) -> None:
    folder = make_bench(tmp_path, ((64, 96), (128, 64)), ((100, 50), (70, 130)))
    result = draw(lensconv, folder)
    assert result["sheets"][0]["file"].endswith("_mixed_q98.webp")
    preview, cells = pixels(folder / PREVIEW), result["preview"]["cells"]
    assert [(cell["width"], cell["height"]) for cell in cells] == [(64, 96), (128, 64), (100, 50), (70, 130)]
    assert cells[0]["x"] == cells[2]["x"] < cells[1]["x"] == cells[3]["x"]
    assert cells[0]["y"] == cells[1]["y"] < cells[0]["y"] + 96 < cells[2]["y"] == cells[3]["y"]
    for cell in cells:
        assert np.array_equal(cut(preview, cell), image_of(folder, cell))
    beside = preview[cells[0]["y"] : cells[0]["y"] + 96, cells[0]["x"] + 64 : cells[1]["x"]]
    below = preview[cells[1]["y"] + 64 : cells[1]["y"] + 96, cells[1]["x"] :]
    assert beside.size
    assert (beside == BACKGROUND).all()
    assert (below == BACKGROUND).all()


def test_missing_cells_are_drawn_as_such_and_told(tmp_path: Path, lensconv: Lensconv) -> None:
    folder = make_bench(tmp_path, *[((200, 160), (200, 160))] * 2, ((120, 90), (120, 90)), ((64, 64), (64, 64)))
    edit_side(folder, 0, "original", {"failed": "killed by SIGKILL"})
    edit_side(folder, 1, "quantized", {"failed": "out of memory"})
    (folder / "images/original/P03-303-original.png").unlink()
    edit_side(folder, 3, "original", {"time_s": 1})
    edit_side(folder, 3, "quantized", {"failed": "word " * 1000 + "x" * 1000})
    result = draw(lensconv, folder)
    preview, cells = pixels(folder / PREVIEW), result["preview"]["cells"]
    missing = [cell for cell in cells if cell["missing"]]
    names = [f"{cell['id']} {cell['model']}" for cell in missing]
    assert names == ["P01 original", "P02 quantized", "P03 original", "P04 original", "P04 quantized"]
    assert [(cell["width"], cell["height"]) for cell in missing] == [(200, 160)] * 2 + [(120, 90)] + [(200, 160)] * 2
    assert result["missing_cells"] == 5
    assert result["images"] == {"original": 1, "quantized": 2}
    # Each says why, so that no two are alike.
    boxes = {cut(preview, cell).tobytes() for cell in missing if cell["width"] == 200}
    assert len(boxes) == 4
    for cell in cells:
        if not cell["missing"]:
            assert np.array_equal(cut(preview, cell), image_of(folder, cell))
    outcome = lensconv("grid", folder)
    assert outcome.code == 0
    shown = " ".join(outcome.stderr.split())
    assert f"5 of 8 cells are missing: {', '.join(names)}." in shown


def test_a_bench_without_any_image_has_boxes_of_the_size_in_its_settings(tmp_path: Path, lensconv: Lensconv) -> None:
    folder = make_bench(tmp_path, ((64, 64), (64, 64)))
    settings = {"num_inference_steps": 1, "guidance_scale": 1, "width": 96, "height": 54}
    edit_json(folder / "comparison_matrix.json", settings=settings)
    for model in MODELS:
        edit_side(folder, 0, model, {"failed": "out of memory"})
    result = draw(lensconv, folder)
    assert [(cell["width"], cell["height"]) for cell in result["sheets"][0]["cells"]] == [(96, 54)] * 2
    assert result["images"] == {"original": 0, "quantized": 0}


def label_pixels(lensconv: Lensconv, folder: Path, scenario: str) -> np.ndarray:
    """Everything above the cells of the only row; the cells are checked."""
    make_bench(folder, ((128, 64), (128, 64)), scenario=scenario)
    result = draw(lensconv, folder)
    preview, cells = pixels(folder / PREVIEW), result["preview"]["cells"]
    for cell in cells:
        assert np.array_equal(cut(preview, cell), image_of(folder, cell))
    assert (preview[:, cells[1]["x"] + cells[1]["width"] :] == BACKGROUND).all()
    assert (preview[:, : cells[0]["x"]] == BACKGROUND).all()
    return preview[: cells[0]["y"]]


def test_labels_are_drawn_in_any_script_and_never_over_a_cell(tmp_path: Path, lensconv: Lensconv) -> None:
    scenarios = ["", "Типография", "Топография", "Typography", "Ünïcödé", "\u202eRed", "Ẑ̵̛a̷l" + "\u0316\u0301" * 90]
    labels = [label_pixels(lensconv, tmp_path, scenario) for scenario in scenarios]
    for index, label in enumerate(labels):
        assert (label != BACKGROUND).any()
        assert all(not np.array_equal(label, other) for other in labels[:index])
    # What the font lacks is a box, the same one for each letter; Cyrillic it has.
    lacking = [label_pixels(lensconv, tmp_path, scenario) for scenario in ("漢", "字", "Ж", "Щ")]
    assert np.array_equal(lacking[0], lacking[1])
    assert not np.array_equal(lacking[2], lacking[3])
    assert not np.array_equal(lacking[0], lacking[2])


def test_long_names_are_shortened_and_keep_the_seed(tmp_path: Path, lensconv: Lensconv) -> None:
    short, long, longer = (
        label_pixels(lensconv, tmp_path, text) for text in ("Red Cube", "Red Cube " * 20, "Red Cube " * 30 + "\ud800")
    )
    assert np.array_equal(long, longer)
    assert not np.array_equal(short, long)
    label_pixels(lensconv, tmp_path, "Ш" * 100_000)


def write_metrics(folder: Path, label: str, **changes: Any) -> None:
    content = {
        "schema": "lensconv.benchmark/1",
        "environment": {"hardware": "none", "torch": "2", "date": "2026-01-01"},
        "settings": {"num_inference_steps": 4, "guidance_scale": 1.0},
        "models": {
            "original": {"label": label, "transformer_storage_gb": 2.0},
            "quantized": {"label": f"{label} uint4", "transformer_storage_gb": 1.0},
        },
    }
    (folder / "benchmark_metrics.json").write_text(json.dumps(content | changes))


def test_columns_bear_the_names_of_the_models(tmp_path: Path, lensconv: Lensconv) -> None:
    plain = label_pixels(lensconv, tmp_path, "")
    write_metrics(tmp_path, "Lens")
    named = label_pixels(lensconv, tmp_path, "")
    assert not np.array_equal(plain, named)
    write_metrics(tmp_path, "Lens" * 100)
    assert not np.array_equal(label_pixels(lensconv, tmp_path, ""), named)
    for schema in ("lensconv.benchmark/2", "lensconv.matrix/1"):
        write_metrics(tmp_path, "Lens", schema=schema)
        assert np.array_equal(label_pixels(lensconv, tmp_path, ""), plain)
        assert "the titles of the columns are Original and Quantized" in lensconv("grid", tmp_path).stderr


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../outside.png", "images/../../outside.png", "link.png", "link/outside.png", "/{outside}"),
        *("images\\outside.png", "images/\0.png", "images/\ud800.png"),
        "images/original/../original/P01-301-original.png",
    ],
)
def test_an_image_outside_the_folder_is_refused(tmp_path: Path, lensconv: Lensconv, name: str) -> None:
    folder = make_bench(tmp_path / "bench", ((8, 8), (8, 8)))
    outside = tmp_path / "outside.png"
    outside.write_bytes((folder / "images/original/P01-301-original.png").read_bytes())
    (folder / "link.png").symlink_to(outside)
    (folder / "link").symlink_to(tmp_path)
    edit_side(folder, 0, "quantized", {"time_s": 1, "image": str(outside) if name == "/{outside}" else name})
    assert "comparison_matrix.json: image" in refused(lensconv, folder)


def test_a_link_within_the_folder_is_followed(tmp_path: Path, lensconv: Lensconv) -> None:
    folder = make_bench(tmp_path, ((8, 8), (8, 8)))
    (folder / "link.png").symlink_to("images/original/P01-301-original.png")
    edit_side(folder, 0, "quantized", {"time_s": 1, "image": "./link.png"})
    assert draw(lensconv, folder)["missing_cells"] == 0


def png_of(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8) -> bytes:
    """A PNG that lacks nearly all of its pixels."""
    return pictures.png(pictures.head(width, height, bits), *chunks, pictures.pixels(b"\0"), pictures.END)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


WHOLE = encoded(Image.fromarray(noise(16, 16)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not a complete PNG"),
        (b"<svg/>", "is not a complete PNG"),
        (WHOLE[:20], "is not a complete PNG"),
        (WHOLE[: len(WHOLE) // 2], "is not a complete PNG"),
        (png_of(16, 16), "is not a complete PNG"),
        (png_of(0, 16), "is not a complete PNG"),
        (png_of(16, 16, (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 24)))), "is not a complete PNG"),
        (png_of(10_000, 10_000), "has more than"),
        (png_of(1 << 30, 1 << 30), "has more than"),
        (encoded(Image.new("RGB", (8, 8)), "JPEG"), "is not a complete PNG"),
        (encoded(Image.new("RGBA", (8, 8))), "its pixels are RGBA"),
        (encoded(Image.new("I;16", (8, 8))), "its pixels are I;16 of 16 bits"),
        (encoded(Image.new("RGB", (8, 8)), transparency=(0, 0, 0)), "its pixels are transparent"),
        (png_of(1, 1, bits=16), "its pixels are RGB of 16 bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_what_is_no_image_is_refused_and_leaves_earlier_files_alone(
    tmp_path: Path, lensconv: Lensconv, content: bytes, reason: str
) -> None:
    folder = make_bench(tmp_path, ((8, 8), (8, 8)), ((8, 8), (8, 8)))
    draw(lensconv, folder)
    name = "images/quantized/P02-302-quantized.png"
    (folder / name).write_bytes(content)
    edit_side(folder, 1, "quantized", {"time_s": 1, "image": name})
    line = refused(lensconv, folder)
    assert name in line
    assert reason in line


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(WHOLE)))
def test_a_broken_png_is_an_image_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], end: int
) -> None:
    content = bytearray(WHOLE)
    for place, value in changes:
        content[place] = value
    folder = tmp_path_factory.getbasetemp()
    (folder / "broken.png").write_bytes(content[:end] if end % 2 else content)
    side = {"time_s": 1, "image": "broken.png"}
    prompt = {"id": "P01", "scenario": "", "seed": 1, "original": side, "quantized": {"failed": "x"}}
    try:
        [row] = find_rows(folder, {"prompts": [prompt]})
        image = read_pixels(row.cells[0])
    except EvidenceError:
        return
    assert Size(*image.size) == row.cells[0].size


def test_another_image_than_was_measured_or_was_found_is_refused(tmp_path: Path, lensconv: Lensconv) -> None:
    folder = make_bench(tmp_path, ((8, 8), (8, 8)))
    [row] = find_rows(folder, json.loads((folder / "comparison_matrix.json").read_text()))
    Image.fromarray(noise(9, 9)).save(folder / "images/original/P01-301-original.png")
    with pytest.raises(EvidenceError, match="changed while"):
        read_pixels(row.cells[0])
    make_bench(tmp_path, ((8, 8), (8, 8)))
    Image.fromarray(noise(8, 8, 99)).save(folder / "images/quantized/P01-301-quantized.png")
    assert "images/quantized/P01-301-quantized.png: is stale" in refused(lensconv, folder)


def test_what_is_no_file_is_refused(tmp_path: Path, lensconv: Lensconv) -> None:
    folder = make_bench(tmp_path, ((8, 8), (8, 8)))
    os.mkfifo(folder / "images/pipe.png")
    (folder / "images/loop.png").symlink_to("loop.png")
    for name in ("images", "images/loop.png", "comparison_matrix.json/a.png", "a" * 300 + ".png"):
        edit_side(folder, 0, "original", {"time_s": 1, "image": name})
        assert "cannot be read" in refused(lensconv, folder)
    edit_side(folder, 0, "original", {"time_s": 1, "image": "images/pipe.png"})
    outcome = lensconv("grid", folder)
    assert outcome.code == 2
    assert "is not a regular file" in outcome.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        ("{", "comparison_matrix.json: "),
        ("[]", "comparison_matrix.json: "),
        ('{"schema": "lensconv.matrix/2", "prompts": []}', "has schema lensconv.matrix/2"),
        ('{"schema": "lensconv.matrix/1", "prompts": []}', "prompts: "),
        (json.dumps(published_summary()), "comparison_matrix.json: has no schema"),
    ],
)
def test_no_matrix_is_refused(tmp_path: Path, lensconv: Lensconv, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "comparison_matrix.json").write_text(content)
    assert reason in refused(lensconv, tmp_path)
    assert "no such folder" in refused(lensconv, tmp_path / "none")


@pytest.mark.parametrize("name", ["assets", PICTURES])
def test_a_link_out_of_the_output_folder_is_refused(tmp_path: Path, lensconv: Lensconv, name: str) -> None:
    folder = make_bench(tmp_path / "bench", ((8, 8), (8, 8)))
    (tmp_path / "elsewhere").mkdir()
    output = tmp_path / "output"
    (output / name).parent.mkdir(parents=True)
    (output / name).symlink_to(tmp_path / "elsewhere")
    assert ", outside of" in refused(lensconv, folder, "--out", output)
    assert names_in(tmp_path / "elsewhere") == []
    (output / name).unlink()
    (output / name).write_bytes(b"")
    assert "cannot be written" in refused(lensconv, folder, "--out", output)


def test_the_name_tells_the_aspect_ratio() -> None:
    for table in RESOLUTIONS.values():
        for ratio, (height, width) in table.items():
            assert ratio_name([Size(width, height)] * 3) == ratio.replace(":", "to")
    assert ratio_name([Size(1440, 1440), Size(1440, 1410)]) == "1to1"
    assert ratio_name([Size(96, 88)]) == "12to11"
    assert ratio_name([Size(96, 96), Size(96, 48)]) == "mixed"


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=12), st.integers(500, 9000))
def test_rows_are_split_as_evenly_and_as_little_as_possible(heights: list[Shape], limit: int) -> None:
    rows = [(Size(32, first), Size(32, second)) for first, second in heights]
    measures = Measures.of(rows)
    counts = split_rows(measures, rows, limit)
    if counts is None:
        assert any(measures.height([row]) > limit for row in rows)
        return
    assert sum(counts) == len(rows)
    assert max(counts) - min(counts) <= 1
    assert -(-measures.height(rows) // limit) <= len(counts) <= len(rows)
    position = 0
    for count in counts:
        assert 0 < measures.height(rows[position : position + count]) <= limit
        position += count


@given(st.integers(40, 16000), st.integers(200, 2000))
def test_the_preview_is_reduced_as_little_as_possible(side: int, width: int) -> None:
    rows = [(Size(side, side), Size(side, side))]
    scale = preview_scale(rows, width)
    assert scale is not None
    widths = [
        Measures.of([(row[0].reduced(by), row[1].reduced(by)) for row in rows]).width for by in (scale, scale - 1) if by
    ]
    assert widths[0] <= width
    assert scale == 1 or widths[1] > width
