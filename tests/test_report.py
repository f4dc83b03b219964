"""``lensconv report``: every pixel, every figure and every reason, in one page that replaces nothing but a report."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from converter.measurement.evidence.names import IMAGES_NAME, MATRIX_NAME
from converter.presentation.report.context import _anchors
from converter.presentation.report.images import encode
from converter.presentation.report.make_report import make_report
from tests.conftest import Lensconv, snapshot
from tests.expected import check_expected
from tests.forms import accepted
from tests.published import write_published
from tests.reports import write_image, write_measurements

Attributes = dict[str, str | None]


class Page(HTMLParser):
    """The elements of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.folder = page.parent
        self.elements: list[tuple[str, Attributes]] = []
        self.text = ""
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[Attributes]:
        """Images of prompts, without thumbnails and charts."""
        found = (attributes for tag, attributes in self.elements if tag == "img" and "decoding" in attributes)
        return list(found)

    def pixels(self, attributes: Attributes) -> np.ndarray:
        """What an image shows; it is inside the page or beside it."""
        address = str(attributes["src"])
        kind, _, text = address.partition(";base64,")
        content = base64.b64decode(text) if text else (self.folder / kind).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            assert image.size == (int(str(attributes["width"])), int(str(attributes["height"])))
            return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measurements with images, which are not changed."""
    return write_measurements(tmp_path_factory.mktemp("measured"), only_images=True)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Measurements with images, which may be changed."""
    return write_measurements(tmp_path, only_images=True)


def report(lensconv: Lensconv, folder: Path, *options: object) -> dict[str, Any]:
    outcome = lensconv("report", folder, *options, "--json")
    assert outcome.code == 0, outcome.stderr
    assert accepted(outcome.result, "report") == []
    return outcome.result


def test_the_page_as_a_whole(tmp_path: Path, lensconv: Lensconv) -> None:
    outcome = lensconv("report", write_measurements(tmp_path), "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    style, script = (re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("style", "script"))
    # The policy allows this style and this script only.
    for (text,), directive in ((style, "style-src"), (script, "script-src")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} &#39;sha256-{digest}&#39;" in page
        page = page.replace(text, "").replace(digest, "")
    shortened = re.sub("base64,[A-Za-z0-9+/=]+", "base64,", page)
    said = re.sub(r"[0-9.]+ [kM]B", "SIZE", " ".join(outcome.stderr.replace(str(tmp_path), "FOLDER").split()))
    check_expected("report/page.html", f"{said}\n{shortened}")


@pytest.mark.parametrize("limit", [10**9, 0])
def test_images_keep_every_pixel(measured: Path, tmp_path: Path, limit: int) -> None:
    done = make_report(measured, output=tmp_path / "a b.html", embedded_bytes=limit)
    assert done.image_folder == (None if limit else tmp_path / "a b-images")
    assert done.images == 10
    page = Page(done.report)
    rows = json.loads((measured / MATRIX_NAME).read_text())["prompts"]
    parts = [row[part] for row in rows for part in ("original", "quantized", "baseline") if "image" in row[part]]
    flat = json.loads((measured / IMAGES_NAME).read_text())["flat_field"]
    parts += [flat[part] for part in ("original", "quantized")]
    assert ("%20" in str(page.images()[0]["src"])) is not bool(limit)
    for part, attributes in zip(parts, page.images(), strict=True):
        attributes = attributes | {"src": str(attributes["src"]).replace("%20", " ")}
        with Image.open(measured / part["image"]) as image:
            assert np.array_equal(page.pixels(attributes), np.asarray(image))


@pytest.mark.parametrize(("size", "form"), [((128, 96), "WEBP"), ((16384, 2), "PNG")])
def test_images_of_all_sizes_are_encoded(size: tuple[int, int], form: str) -> None:
    image = Image.effect_noise(size, 90).convert("RGB")
    decoded = Image.open(io.BytesIO(encode(image)))
    assert decoded.format == form
    assert decoded.convert("RGB").tobytes() == image.tobytes()


def test_a_report_is_replaced_by_the_next(own: Path, lensconv: Lensconv) -> None:
    first = report(lensconv, own)
    assert first["report"] == str(own / "report.html")
    page = (own / "report.html").read_bytes()
    assert (report(lensconv, own), (own / "report.html").read_bytes()) == (first, page)
    # Images beside a page go with it; what else is there stays.
    make_report(own, embedded_bytes=0)
    folder = own / "report-images"
    before = snapshot(folder)
    assert len(before) == first["images"]
    (folder / "mine.webp").write_text("mine")
    edit_original(own, **write_image(own, "images/new.png", (8, 8), 9))
    make_report(own, embedded_bytes=0)
    assert len(snapshot(folder)) == first["images"] + 1
    assert len(before.keys() & snapshot(folder).keys()) == first["images"] - 1
    make_report(own)
    assert list(snapshot(folder)) == ["mine.webp"]


def edit_original(folder: Path, **changes: Any) -> None:
    """Change what the matrix says of the first image."""
    content = json.loads((folder / MATRIX_NAME).read_text())
    content["prompts"][0]["original"] |= changes
    (folder / MATRIX_NAME).write_text(json.dumps(content))


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text("<!doctype html>"), "is not a report of lensconv"),
        (lambda path: path.symlink_to("other.html"), "is not a report of lensconv"),
        (make_pipe, "is not a report of lensconv"),
        (Path.mkdir, "is a folder"),
    ],
)
def test_nothing_else_is_replaced(
    measured: Path, tmp_path: Path, lensconv: Lensconv, make: Callable[[Path], object], reason: str
) -> None:
    output = tmp_path / "report.html"
    make(output)
    outcome = lensconv("report", measured, "--out", output)
    assert (outcome.code, reason in outcome.stderr) == (2, True), outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    if reason != "is a folder":
        report(lensconv, measured, "--out", output, "--overwrite")
        assert not output.is_symlink()
        assert Page(output).images()


def test_a_link_to_another_folder_is_not_followed(measured: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report-images").symlink_to(tmp_path / "other")
    outcome = lensconv("report", measured, "--out", tmp_path / "out" / "report.html")
    assert (outcome.code, "outside of" in outcome.stderr) == (2, True)


def change(folder: Path) -> None:
    file = folder / "images" / "original" / "P01.png"
    file.write_bytes(file.read_bytes() + b"x")


def cut(folder: Path) -> None:
    content = (folder / "images" / "original" / "P01.png").read_bytes()[:200]
    (folder / "images" / "original" / "P01.png").write_bytes(content)
    edit_original(folder, image_sha256=hashlib.sha256(content).hexdigest())


def lead_out(folder: Path) -> None:
    edit_original(folder, image="../secret.png")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "images/original/P01.png").unlink(), "no such file: images/original/P01.png"),
        (change, "is stale: its sha256 is not the one in comparison_matrix.json"),
        (cut, "is not a complete PNG"),
        (lead_out, "image ../secret.png is not a path inside the folder"),
    ],
)
def test_an_image_that_is_missing_or_was_changed_says_so(
    own: Path, lensconv: Lensconv, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(own)
    result = report(lensconv, own)
    failed = {"id": "P03", "model": "quantized", "reason": "not measured: timeout"}
    first, second = result["missing"]
    assert (first["id"], first["model"], second) == ("P01", "original", failed)
    assert first["reason"].startswith(reason)
    page = Page(own / "report.html")
    assert len(page.images()) == result["images"] == 9
    assert reason in page.text
    assert str(own) not in (own / "report.html").read_text("utf-8")


def test_measurements_of_the_first_releases_are_shown(tmp_path: Path, lensconv: Lensconv) -> None:
    write_published(tmp_path)
    result = report(lensconv, tmp_path)
    assert (result["prompts"], result["images"], len(result["missing"])) == (10, 0, 20)
    (tmp_path / MATRIX_NAME).unlink()
    assert report(lensconv, tmp_path)["prompts"] == 0
    page = Page(tmp_path / "report.html")
    assert not {"article", "form", "iframe"} & {tag for tag, _ in page.elements}


def test_nothing_is_shown_of_a_folder_without_measurements(tmp_path: Path, lensconv: Lensconv) -> None:
    outcome = lensconv("report", tmp_path)
    assert (outcome.code, list(tmp_path.iterdir())) == (2, [])
    assert lensconv("report", tmp_path / "none").code == 2


def test_every_prompt_has_an_address_of_its_own() -> None:
    ids = ["P01", "charts", "prompt-4", "a b", "P01", "-x", "x" * 65, "юникод", "prompt-8"]
    anchors = list(_anchors(ids, {"charts"}))
    assert anchors == ["P01", "prompt-2", "prompt-4", "prompt-4-", *(f"prompt-{n}" for n in range(5, 10))]
    assert max(Counter(anchors).values()) == 1


def test_nothing_is_said_of_a_second_seed_that_was_not_drawn(own: Path) -> None:
    content = json.loads((own / IMAGES_NAME).read_text())
    content["summary"]["baseline"] = None
    for pair in content["pairs"]:
        pair["baseline"] = None
    (own / IMAGES_NAME).write_text(json.dumps(content))
    text = Page(make_report(own).report).text
    assert "seed" in text
    assert "another seed" not in text
    assert "with a second seed" not in text
