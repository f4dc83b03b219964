"""``lensconv grid``: images side by side, pixel for pixel, and one line for everything that is no image."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from converter.cli.grid import _lines
from converter.console import Console
from converter.errors import EvidenceError, OutputError
from converter.measurement.evidence.names import MODELS
from converter.measurement.evidence.origin import grid_text, is_drawn_from
from converter.models.lens.resolutions import RESOLUTIONS
from converter.presentation.grid.cells import Cell, Row, find_rows, read_pixels
from converter.presentation.grid.drawing import BACKGROUND, Typography, draw_missing, encode, label_of, wrap
from converter.presentation.grid.layout import Measures, Size, preview_scale, ratio_name, rows_that_fit, split_rows
from converter.presentation.grid.make_grid import _split, make_grid
from converter.presentation.grid.report import GridReport, PlacedCell, Preview, Sheet
from tests import pictures
from tests.conftest import Lensconv, Outcome, edit_json, names_in, snapshot
from tests.expected import check_expected
from tests.forms import accepted
from tests.published import published_metrics, published_summary

Shape = tuple[int, int]
PICTURES = "assets/comparison"
SHEET = f"{PICTURES}/comparison_grid_1to1_q98.webp"
PREVIEW = f"{PICTURES}/comparison_preview.webp"


Paint = Callable[[int, int, int], np.ndarray]


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return pictures.noise(seed, height, width)


def slope(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A picture without edges, of which WebP loses little."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + seed) + np.cos(y / 13 + seed), x / width + y / height, np.sin((x + y) / 17 - seed)]
    return (np.stack(waves, -1) * 50 + 110).astype(np.uint8)


def make_bench(folder: Path, *sizes: tuple[Shape, Shape], paint: Paint = noise) -> Path:
    """A folder as ``lensconv bench`` makes it: a row for each pair of sizes."""
    prompts = []
    for index, shapes in enumerate(sizes):
        row: dict[str, Any] = {"id": f"P{index + 1:02}", "scenario": "Red Cube", "seed": 301 + index}
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


def draw(lensconv: Lensconv, folder: Path, *options: object) -> dict[str, Any]:
    outcome = lensconv("grid", folder, *options, "--json")
    assert outcome.code == 0, outcome.stderr
    assert accepted(outcome.result, "grid") == []
    return outcome.result


def refused(lensconv: Lensconv, folder: Path, *options: object) -> str:
    """The one line that the command ends with."""
    before = snapshot(folder) if folder.is_dir() else {}
    outcome = lensconv("grid", folder, *options)
    assert outcome.code == 2, outcome.stderr
    assert re.fullmatch("error: .*\n", outcome.stderr)
    assert (snapshot(folder) if folder.is_dir() else {}) == before
    return outcome.stderr


def described(folder: Path, outcome: Outcome, paint: Paint) -> str:
    """The report of a grid in a line, with a checksum of all that is drawn into the preview beside the images.

    Every image is where the report says: in its own pixels, those of the preview reduced.
    """
    result = outcome.result
    assert accepted(result, "grid") == []
    preview = np.array(pixels(folder / result["preview"]["file"]))
    for sheet in (*result["sheets"], result["preview"]):
        drawn, scale = pixels(folder / sheet["file"]), sheet.get("scale", 1)
        assert drawn.shape == (sheet["height"], sheet["width"], 3)
        assert sheet.pop("bytes") == (folder / sheet["file"]).stat().st_size
        for cell in sheet["cells"]:
            if not cell["missing"]:
                (file,) = (folder / "images" / cell["model"]).glob(f"{cell['id']}-*.png")
                image = np.asarray(Image.fromarray(pixels(file)).reduce(scale))
                if sheet.get("lossless"):
                    assert np.array_equal(cut(drawn, cell), image)
                elif paint is slope:
                    # In levels of 255. If a large cell is a single pixel off, or the quality lower, it is larger.
                    most = 4.2 if "scale" in sheet else 1.4 if image.shape[1] > 100 else 2.5
                    assert np.abs(cut(drawn, cell).astype(int) - image).mean() < most
        sheet["cells"] = [[*cell.values()] for cell in sheet["cells"]]
    for _, _, x, y, width, height, missing in result["preview"]["cells"]:
        # Beside a cell is nothing; a reason is written in letters that are not reduced.
        assert np.abs(preview[y : y + height, x + width + 2 : x + width + 10] - np.array(BACKGROUND, float)).mean() < 4
        if not missing:
            preview[y : y + height, x : x + width] = BACKGROUND
        elif not result["preview"]["lossless"]:
            assert np.sort(preview[y : y + height, x : x + width], None)[:200].mean() < 150
    if result["preview"]["lossless"]:
        result["drawn"] = zlib.crc32(preview.tobytes())
    return f"{json.dumps(result)} {outcome.stderr!r}\n".replace(str(folder), "")


Edit = Callable[[Path], object]


def edited(*sides: tuple[int, str, dict[str, Any]], **settings: Any) -> Edit:
    """Change measurements of images, and the settings of all; a file of the third row is gone."""

    def edit(folder: Path) -> None:
        for side in sides:
            edit_side(folder, *side)
        edit_json(folder / "comparison_matrix.json", **({"settings": settings} if settings else {}))
        (folder / "images/original/P03-303-original.png").unlink(missing_ok=True)

    return edit


FAILED = [(0, model, {"failed": "out of memory"}) for model in MODELS]
MISSING: list[tuple[int, str, dict[str, Any]]] = [
    *((0, "original", {"failed": "killed by SIGKILL"}), (1, "quantized", {"failed": "out of memory"})),
    *((3, "original", {"time_s": 1}), (3, "quantized", {"failed": "word " * 1000 + "x" * 1000})),
]
SETTINGS = {"num_inference_steps": 1, "guidance_scale": 1, "width": 96, "height": 54}
#: Letters that the font lacks are a box; marks and long texts stay within their line.
SCENARIOS = [
    *("", "Типография", "Ünïcödé", "\u202eRed", "Ẑ̵̛a̷l" + "\u0316\u0301" * 90, "漢", "字"),
    *("Red Cube " * 30, "Ш" * 100_000),
]


def write_metrics(folder: Path, **changes: Any) -> None:
    content = published_metrics() | changes
    for model in MODELS:
        content["models"][model]["label"] = f"Lens\u202e {model}"
    (folder / "benchmark_metrics.json").write_text(json.dumps(content))


def with_scenarios(folder: Path) -> None:
    content = json.loads((folder / "comparison_matrix.json").read_text())
    prompts = [row | {"scenario": text} for row, text in zip(content["prompts"], SCENARIOS, strict=True)]
    edit_json(folder / "comparison_matrix.json", prompts=prompts)


def squares(side: int, times: int = 1) -> list[tuple[Shape, Shape]]:
    return [((side, side), (side, side))] * times


CASES: dict[str, tuple[list[tuple[Shape, Shape]], Paint, Edit | None, tuple[object, ...]]] = {
    "lossless": (squares(96, 3), noise, None, ()),
    "reduced": ([((200, 100), (199, 101))], slope, None, ("--preview-width", 200)),
    "sheets": ([((16, 4000), (16, 4000))] * 9, slope, None, ()),
    "mixed": ([((64, 96), (128, 64)), ((100, 50), (70, 130))], noise, None, ()),
    "missing": ([((120, 90), (120, 90)), *[((200, 160), (200, 160))] * 2, *squares(64)], noise, edited(*MISSING), ()),
    "settings": (squares(64), noise, edited(*FAILED, **SETTINGS), ()),
    "nothing": (squares(64), noise, edited(*FAILED), ("--preview-width", 520)),
    "names": ([((256, 64), (256, 64))], slope, write_metrics, ()),
    "labels": ([((300, 16), (300, 16))] * 9, noise, with_scenarios, ()),
    "gone": (squares(64), slope, lambda folder: (folder / "benchmark_metrics.json").symlink_to("gone"), ()),
    "other": (squares(64), slope, lambda folder: write_metrics(folder, schema="lensconv.benchmark/3"), ()),
}


@pytest.mark.parametrize("name", CASES)
def test_images_side_by_side(tmp_path: Path, lensconv: Lensconv, name: str) -> None:
    sizes, paint, edit, options = CASES[name]
    folder = make_bench(tmp_path, *sizes, paint=paint)
    if edit is not None:
        edit(folder)
    check_expected(f"grid/{name}.txt", described(folder, lensconv("grid", folder, *options, "--json"), paint))


@pytest.mark.parametrize("missing", [0, 5, 6])
def test_what_is_said_of_a_grid(missing: int) -> None:
    """Only five missing cells are named, and rows of the preview are counted where some are left out."""
    sides = [(f"P{row}", side) for row in range(4) for side in "ab"]
    cells = tuple(PlacedCell(*side, 0, 0, 3, 4, number < missing) for number, side in enumerate(sides))
    scale = 1 + (missing > 0)
    preview = Preview("p.webp", 5, 6, 7000, scale, scale == 1, cells[: 10 - 2 * scale])
    lines = _lines(GridReport(Path("/out"), (Sheet("s.webp", 8, 9, 10, cells),), preview))
    kind = "cells scaled down by 2, 3 of 4 rows" if missing else "lossless"
    names = f"P0 a, P0 b, P1 a, P1 b, P2 a{', …' if missing > 5 else ''}"
    more = [f"{missing} of 8 cells are missing: {names}."] if missing else []
    assert lines == ["/out/s.webp: 8x9, 10 B.", f"/out/p.webp: 5x6, 7.0 kB, {kind}.", *more]


def test_files_of_earlier_runs_are_removed(tmp_path: Path, lensconv: Lensconv) -> None:
    folder = make_bench(tmp_path, ((64, 64), (64, 64)))
    kept = ["comparison_grid_1to1_q98-old.webp", "comparison_grid_1to1_q90.webp", "mine.webp"]
    kept += [f"my_{Path(SHEET).name}", f"{Path(SHEET).name}.orig"]
    (folder / PICTURES).mkdir(parents=True)
    for name in (*kept, "comparison_grid_1to1_q98-1of2.webp"):
        (folder / PICTURES / name).write_bytes(b"kept")
    (folder / PICTURES / "comparison_grid_mixed_q98-2of2.webp").symlink_to(folder / PICTURES / "mine.webp")
    draw(lensconv, folder)
    assert names_in(folder / PICTURES) == sorted([*kept, Path(SHEET).name, Path(PREVIEW).name])
    assert "preview-width 20: too narrow for two columns" in refused(lensconv, folder, "--preview-width", 20)


def test_two_runs_give_the_same_bytes_and_the_origin_alone(
    tmp_path: Path, lensconv: Lensconv, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bench(tmp_path / "bench", ((64, 64), (64, 64)))
    first = draw(lensconv, folder, "--out", tmp_path / "one")
    os.utime(folder / "images/original/P01-301-original.png", (1, 1))
    monkeypatch.setattr("converter.console.LINE_INTERVAL", 0)
    assert make_grid(folder, output=tmp_path / "two", reporter=Console(stderr=(said := StringIO()))).to_dict() == first
    shown = [f"{done} of 3" for done in (1, 2, 3, 3)]
    assert re.findall(r"drawing the grid: (\d of \d) steps", said.getvalue()) == shown
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    assert names_in(folder) == ["comparison_matrix.json", "images"]
    matrix = json.loads((folder / "comparison_matrix.json").read_text())
    first, *rest = matrix["prompts"]
    changes = {"id": "P99", "scenario": "Blue", "seed": 7, **{model: {"image_sha256": "0" * 64} for model in MODELS}}
    others = [{"prompts": [{**first, key: value}, *rest]} for key, value in changes.items()]
    for name, kind in ((SHEET, b"VP8 "), (PREVIEW, b"VP8L")):
        content = (tmp_path / "one" / name).read_bytes()
        assert chunks(content) == [b"VP8X", kind, b"EXIF"]
        assert is_drawn_from(content, grid_text(matrix))
        assert not any(is_drawn_from(content, grid_text(other)) for other in others)


def chunks(content: bytes) -> list[bytes]:
    """Names of the parts of a WebP file, by its container format."""
    names, place = [], 12
    while place < len(content):
        names.append(content[place : place + 4])
        length = struct.unpack("<I", content[place + 4 : place + 8])[0]
        place += 8 + length + length % 2
    return names


def test_labels_are_cut_to_their_width_and_keep_the_seed() -> None:
    fonts = Typography(Measures((400, 400), 14))
    assert (fonts.label.size, fonts.title.size) == (14, 18)
    long = "Red Cube " * 20
    width = 1 + sum(math.ceil(fonts.label.getlength(text)) for text in ("P01 · Red Cube", " · seed 301"))
    for scenario, available, shown in (
        ("Red Cube", width, ("P01 · Red Cube", " · seed 301")),
        (long, width, ("P01 · Red Cu…", " · seed 301")),
        (long + "\ud800", width, ("P01 · Red Cu…", " · seed 301")),
        ("\u202eЖ", width, ("P01 · \\u202eЖ", " · seed 301")),
        (long, 130, ("P01 · …", " · seed 301")),
        (long, 115, ("P01 · Red Cub…", "")),
        (long, 5, ("", "")),
    ):
        cells = (Cell("P01", "original", Size(1, 1)), Cell("P01", "quantized", Size(1, 1)))
        assert label_of(Row("P01", scenario, 301, cells), fonts.label, available) == shown
    assert wrap("ab abcdefghi  c d", fonts.label, 40) == ["ab", "abc…", "c d"]
    assert wrap("ab c", fonts.label, 1) == []
    assert draw_missing(Size(300, 16), "no " * 50, fonts) == draw_missing(Size(300, 16), "", fonts)


def png_of(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8) -> bytes:
    """A PNG that lacks nearly all of its pixels."""
    return pictures.png(pictures.head(width, height, bits), *chunks, pictures.pixels(b"\0"), pictures.END)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


WHOLE = encoded(Image.fromarray(noise(16, 16)))
BROKEN = [
    *(b"", b"<svg/>", WHOLE[:20], WHOLE[: len(WHOLE) // 2], png_of(16, 16), png_of(0, 16)),
    png_of(16, 16, (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 24)))),
    *(png_of(10_000, 10_000), png_of(1 << 30, 1 << 30), png_of(1, 1, bits=16)),
    *(encoded(Image.new(mode, (8, 8))) for mode in ("RGBA", "I;16")),
    encoded(Image.new("RGB", (8, 8)), "JPEG"),
    encoded(Image.new("RGB", (8, 8)), transparency=(0, 0, 0)),
    *(pictures.png(pictures.head(1, 1), pictures.pixels(bytes(4)), (b"iCCP", text)) for text in (b"", b"a\0\1")),
]
#: Names of images that are outside of the folder or no files.
OUTSIDE = [
    *("", ".", "..", "../outside.png", "images/../../outside.png", "link.png", "link/outside.png", "/outside.png"),
    *("/inside.png", "images\\outside.png", "images/\0.png", "images/\ud800.png"),
    "images/original/../original/P01-301-original.png",
    *("images", "images/loop.png", "comparison_matrix.json/a.png", "a" * 300 + ".png", "images/pipe.png"),
]
MATRICES = [
    *("{", "[]", '{"schema": "lensconv.matrix/2", "prompts": []}', '{"schema": "lensconv.matrix/1", "prompts": []}'),
    json.dumps(published_summary()),
]


def test_what_is_refused(tmp_path: Path, lensconv: Lensconv) -> None:
    """Files of earlier runs are left alone. A line for each kind of file."""
    folder = make_bench(tmp_path / "bench", ((8, 8), (8, 8)), ((8, 8), (8, 8)))
    draw(lensconv, folder)
    image, matrix = folder / "images/quantized/P02-302-quantized.png", folder / "comparison_matrix.json"
    (tmp_path / "outside.png").write_bytes(image.read_bytes())
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "link").symlink_to(tmp_path)
    (folder / "images/loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "images/pipe.png")
    lines: list[list[str]] = [[], [], [], []]
    Image.fromarray(noise(8, 8, 99)).save(image)
    lines[0].append(refused(lensconv, folder))
    for content in BROKEN:
        image.write_bytes(content)
        edit_side(folder, 1, "quantized", {"time_s": 1, "image": str(image.relative_to(folder))})
        lines[0].append(refused(lensconv, folder))
    for name in OUTSIDE:
        place = f"{folder if 'inside' in name else tmp_path}{name}" if name.startswith("/") else name
        edit_side(folder, 1, "quantized", {"time_s": 1, "image": place})
        lines[1].append(refused(lensconv, folder))
    (folder / "within.png").symlink_to("images/original/P01-301-original.png")
    edit_side(folder, 1, "quantized", {"time_s": 1, "image": "./within.png"})
    assert draw(lensconv, folder)["missing_cells"] == 0
    for text in MATRICES:
        matrix.write_text(text)
        lines[2].append(refused(lensconv, folder))
    matrix.unlink()
    lines[2] += [refused(lensconv, folder), refused(lensconv, tmp_path / "none")]
    for shape in ((16, 16383), (8200, 8)):
        lines[3].append(refused(lensconv, make_bench(folder, ((shape[0], 8),) * 2, (shape, shape), paint=slope)))
    text = "".join(" ".join("".join(group).split()) + "\n" for group in lines)
    # A name that is too long is cut, depending on the folder's own.
    text = re.sub(r"\S*…\S*", "…", text.replace(str(folder), "").replace(str(tmp_path), ".."))
    check_expected("grid/refused.txt", text)


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


def test_an_image_of_any_mode_keeps_its_colours_and_is_refused_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bench(tmp_path, ((8, 8), (8, 8)))
    edit_side(folder, 0, "original", {"time_s": 1, "image": "any.png"})
    for mode in ("1", "L", "P", "RGB"):
        image = Image.fromarray(noise(8, 8)).convert(mode)
        image.save(tmp_path / "any.png")
        [row] = find_rows(folder, json.loads((folder / "comparison_matrix.json").read_text()))
        assert read_pixels(row.cells[0]) == image.convert("RGB")
    monkeypatch.setattr("converter.presentation.grid.cells._FILE_LIMIT", (tmp_path / "any.png").stat().st_size)
    read_pixels(row.cells[0])
    for content, said in ((b"x", "changed while"), (bytes(1000), "is longer than"), (None, "changed while")):
        (tmp_path / "any.png").write_bytes(content) if content else (tmp_path / "any.png").unlink()
        with pytest.raises(EvidenceError, match=said):
            read_pixels(row.cells[0])
    with pytest.raises(OutputError, match="16384x1 pixels cannot be written as WebP"):
        encode(Image.new("RGB", (16384, 1)), Image.Exif(), quality=None)


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


@pytest.mark.parametrize("settings", [{"width": 96}, {"height": 54}])
def test_half_a_size_gives_no_box_its_size(tmp_path: Path, settings: dict[str, int]) -> None:
    prompt = {"id": "P01", "scenario": "", "seed": 1} | {model: {"failed": "x"} for model in MODELS}
    (row,) = find_rows(tmp_path, {"prompts": [prompt], "settings": settings})
    assert row.sizes == (Size(512, 512), Size(512, 512))


def test_the_name_tells_the_aspect_ratio() -> None:
    for table in RESOLUTIONS.values():
        for ratio, (height, width) in table.items():
            assert ratio_name([Size(width, height)] * 3) == ratio.replace(":", "to")
    assert ratio_name([Size(1440, 1440), Size(1440, 1410)]) == "1to1"
    assert (ratio_name([Size(96, 88)]), ratio_name([Size(1440, 1396)])) == ("12to11", "360to349")
    assert ratio_name([Size(96, 96), Size(96, 48)]) == "mixed"


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=12), st.integers(500, 9000))
def test_rows_are_split_as_evenly_and_as_little_as_possible(heights: list[Shape], limit: int) -> None:
    rows = [(Size(32, first), Size(32, second)) for first, second in heights]
    measures = Measures.of(rows)
    counts = split_rows(measures, rows, limit)
    # All fit into exactly their height, and not into a pixel less.
    whole = measures.height(rows)
    assert (split_rows(measures, rows, whole), rows_that_fit(measures, rows, whole)) == ([len(rows)], len(rows))
    assert rows_that_fit(measures, rows, whole - 1) == len(rows) - 1
    assert _split([(Size(7500, 8), Size(7519, 8))]) == [1], "as wide as WebP allows"
    if counts is None:
        assert any(measures.height([row]) > limit for row in rows)
        return
    assert sum(counts) == len(rows)
    assert max(counts) - min(counts) <= 1
    assert -(-whole // limit) <= len(counts) <= len(rows)
    position = 0
    for count in counts:
        assert 0 < measures.height(rows[position : position + count]) <= limit
        position += count


@given(st.integers(40, 16000), st.integers(200, 2000))
def test_the_preview_is_reduced_as_little_as_possible(side: int, width: int) -> None:
    rows = [(Size(side, side), Size(side, side))]
    scale = preview_scale(rows, width)
    assert scale is not None
    widths = [Measures.of([(Size(side, side).reduced(by),) * 2]).width for by in (scale, scale - 1) if by]
    assert widths[0] <= width
    assert preview_scale(rows, widths[0]) == scale
    assert scale == 1 or widths[1] > width
