"""Texts in images: which reader reads a string, what it reads, and what happens where it cannot."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rapidocr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from converter.measurement.comparison import rapidocr_reader, tesseract_reader, text_accuracy
from converter.measurement.comparison.compare import compare
from converter.measurement.comparison.perceptual import NotMeasured
from converter.measurement.comparison.rapidocr_reader import MODELS, RapidOcrReader, load_rapidocr
from converter.measurement.comparison.reading_order import Line, text_by_groups, text_by_rows
from converter.measurement.comparison.substring import nearest_substring, normalize, substring_distance
from converter.measurement.comparison.tesseract_reader import languages_of
from converter.measurement.comparison.text_accuracy import LEGIBLE, Readers, find_readers
from scripts.signs.drawing import draw_sign
from scripts.signs.vocabulary import Sign
from tests.cases import check_cases
from tests.conftest import run_python
from tests.pictures import Pixels, noise
from tests.reading import plant_program, sign
from tests.reporters import Notes

SIGN = "WARM BREAD"
RUSSIAN_SIGN = "ТЁПЛЫЙ ХЛЕБ"


@pytest.fixture(scope="module")
def readers() -> Readers:
    """Both readers; where tesseract is installed at all, its data for English and Russian must be, too."""
    found = find_readers()
    assert found.rapidocr is not None, found.reasons
    if not shutil.which("tesseract"):
        pytest.skip("tesseract is not installed: apt-get install tesseract-ocr tesseract-ocr-rus")
    assert found.tesseract is not None, found.reasons
    assert {"eng", "rus"} <= found.tesseract.languages, "apt-get install tesseract-ocr tesseract-ocr-rus"
    return found


def read(readers: Readers, image: Pixels, required: str) -> tuple[float, str]:
    """Error rate and text of a string, by the reader that it belongs to."""
    ((name, strings),) = readers.assign([required])
    (found,) = readers.read(name, image, strings)
    assert found.error_rate is not None
    assert found.text is not None
    return found.error_rate, found.text


@pytest.mark.parametrize(
    ("text", "damaged"),
    [(SIGN, ("WARM BEAD", "WRAM BEDRA", "XKOV QUIZ")), (RUSSIAN_SIGN, ("ТЁПЛЫЙ ХЕБ", "ПЁТЛЙЫ ЛХБЕ", "ФУЩ ЮЖЦГ"))],
)
def test_text_errors_follow_the_damage(readers: Readers, text: str, damaged: tuple[str, ...]) -> None:
    rates = [read(readers, sign(shown), text)[0] for shown in (text, *damaged)]
    assert rates == sorted(rates)
    assert rates[0] <= 0.1 < rates[2] < rates[3]
    assert rates[1] <= LEGIBLE


@pytest.mark.parametrize(
    ("required", "shown", "image"),
    [
        ("OPEN", "OPFN", sign("OPFN")),
        ("CAFÉ MUÑOZ", "CAFÉ MUÑOZ", sign("CAFÉ MUÑOZ")),
        ("18:45", "18:45", sign("18:45")),
        ("EXIT 7", "EXIT 7", sign("EXIT 7", size=15, shape=(96, 48))),
        ("FRESH FISH", "FRESH FISH", sign("FRESH FISH", angle=22)),
        ("PARKING", "PARKING", sign("PARKING", angle=90)),
        ("PARKING", "PARKING", sign("PARKING", angle=-90)),
        ("BOOK MARKET", "BOOK MARKET", sign("BOOK\nMARKET")),
    ],
)
def test_rapidocr_reads_what_is_there(required: str, shown: str, image: Pixels) -> None:
    found = Readers(load_rapidocr(), None, {})
    assert found.assign([required]) == [("RapidOCR", [required])]
    rate, text = read(found, image, required)
    assert (text, rate) == (shown, 0.25 if shown == "OPFN" else 0)


@pytest.mark.parametrize("text", ["LAKE 7", "CAFE 1", "FARM 9"])
def test_a_digit_that_stands_apart_in_a_small_image_is_read(text: str) -> None:
    picture = draw_sign(Sign((text,), "red", "white", "snow", ""))
    assert load_rapidocr().read(np.asarray(picture.convert("RGB"))) == (text, text)


def test_two_signs_side_by_side_are_read_one_by_one(readers: Readers) -> None:
    image = np.hstack([sign("WARM\nBREAD", shape=(160, 120)), sign("FRESH\nFISH", shape=(160, 120))])
    by_rows, by_groups = load_rapidocr().read(image)
    assert (by_rows, by_groups) == ("WARM FRESH\nBREAD FISH", "WARM\nBREAD\nFRESH\nFISH")
    # A text that is in one of the orders only is found.
    found = readers.read(RapidOcrReader.name, image, ["WARM BREAD", "BREAD FISH"])
    assert [reading.error_rate for reading in found] == [0, 0]


def test_what_is_blurred_or_noisy_reads_worse(readers: Readers) -> None:
    for text in (SIGN, RUSSIAN_SIGN):
        image = sign(text)
        blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(9)))
        static = np.clip(image + np.random.default_rng(0).normal(0, 200, image.shape), 0, 255).astype(np.uint8)
        assert min(read(readers, worse, text)[0] for worse in (blurred, static)) > 0.4


@pytest.mark.parametrize(("height", "width"), [(11, 1500), (1500, 11), (11, 11), (200, 200), (64, 2600)])
def test_images_of_any_shape_are_read(height: int, width: int) -> None:
    """Noise, and stripes."""
    reader = load_rapidocr()
    stripes = np.zeros((height, width, 3), np.uint8)
    stripes[:, ::5] = 255
    for image in (noise(1, height, width), stripes):
        assert len(reader.read(image)) == 2


def test_reading_ends_after_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rapidocr_reader, "TIME_LIMIT", -1)
    with pytest.raises(NotMeasured, match="RapidOCR took longer than -1 s"):
        load_rapidocr().read(sign(SIGN))


def test_which_strings_rapidocr_can_read() -> None:
    check_cases("rapidocr_strings.jsonl", load_rapidocr().can_read)


def test_which_data_tesseract_needs() -> None:
    """No string is read with the data of another script, which cannot have its letters."""
    check_cases("tesseract_languages.jsonl", lambda string: sorted(languages_of(string)))


def test_rapidocr_changes_nothing_in_the_process_and_needs_no_network() -> None:
    """It also prints nothing, and gives the same text again, in threads as well."""
    program = """
import logging, os, socket, sys, threading, warnings
from concurrent.futures import ThreadPoolExecutor
import numpy as np
def state():
    root = logging.getLogger()
    filters = [(*map(str, line),) for line in warnings.filters]
    place = os.getcwd(), dict(os.environ)
    return root.level, [*root.handlers], filters, place, threading.active_count()
def refuse(*_, **__):
    raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
from tests.reading import sign
before = state()
from converter.measurement.comparison.rapidocr_reader import load_rapidocr
images = [sign("WARM BREAD"), sign("HOTEL", angle=90)] * 2
with ThreadPoolExecutor(2) as pool:
    found = [*pool.map(load_rapidocr().read, images)]
assert found == [load_rapidocr().read(image) for image in images] == [("WARM BREAD",) * 2, ("HOTEL",) * 2] * 2, found
assert state() == before, [pair for pair in zip(state(), before) if pair[0] != pair[1]]
import cv2
assert cv2.getNumThreads() == cv2.getNumberOfCPUs()
"""
    done = run_python(program, flags=("-W", "error"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_rapidocr_without_its_parts_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason() -> str:
        with pytest.raises(NotMeasured) as caught:
            RapidOcrReader()
        return str(caught.value)

    package = Path(rapidocr.__file__).parent
    monkeypatch.setattr(rapidocr, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "models").mkdir()
    for name in MODELS:
        assert reason() == f"RapidOCR lacks its network {name}.onnx; install the package rapidocr again"
        (tmp_path / "models" / f"{name}.onnx").write_bytes(b"hello")
    assert reason().startswith("the networks of RapidOCR cannot be loaded: ")
    # A network without a dictionary, for which RapidOCR would download one.
    shutil.copyfile(package / "models" / f"{MODELS[0]}.onnx", tmp_path / "models" / f"{MODELS[1]}.onnx")
    assert reason().startswith("the networks of RapidOCR cannot be loaded: ")
    for name in ("onnxruntime", "rapidocr"):
        monkeypatch.setitem(sys.modules, name, None)
        assert reason() == f"the package {name} is not installed; the extra measure installs it"
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.delitem(sys.modules, "rapidocr")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert reason() == "RapidOCR cannot be imported: libGL.so.1: cannot open shared object file"


def line(text: str, left: float, top: float, right: float, bottom: float, direction: str = "right") -> Line:
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)
    return Line(text, corners, np.array({"right": (1.0, 0.0), "down": (0.0, 1.0), "up": (0.0, -1.0)}[direction]))


def test_lines_are_put_in_reading_order() -> None:
    def order(lines: Any) -> list[str]:
        found = [line(*values) for values in lines]
        assert text_by_rows(found[::-1]) == text_by_rows(found)
        return [text_by_rows(found), text_by_groups(found)]

    check_cases("reading_order.jsonl", order)


@given(st.text("abE\u0308 .-", min_size=1, max_size=8).filter(normalize), st.text("abE\u0308 .-\u00df", max_size=20))
def test_what_was_read_is_as_near_as_the_error_rate_says(string: str, text: str) -> None:
    wanted, found = normalize(string), normalize(nearest_substring(string, text))
    least = substring_distance(wanted, normalize(text))
    # Blanks at its ends are left out.
    assert least <= substring_distance(wanted, found) <= least + 2
    assert found in normalize(text)
    assert substring_distance(found, wanted) <= len(found)


def test_each_string_has_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was read; and the method names both readers."""
    plant_program(tmp_path, monkeypatch, "rus", "echo ХЛЕБ 24 ")
    for folder, shown in (("a", "WARM BREAD"), ("b", "WARN BREAD")):
        (tmp_path / folder).mkdir()
        Image.fromarray(sign(shown)).save(tmp_path / folder / "P01-1.png")
    required = {"P01": ["Хлеб", SIGN, "cafe КАФЕ"]}
    report = compare(tmp_path / "a", tmp_path / "b", required=required, lpips=False)
    found = [[*vars(text).values()] for text in report.pairs[0].text]
    assert found == [
        ["Хлеб", 0, 0, "tesseract", "ХЛЕБ", "ХЛЕБ"],
        [SIGN, 0, 0.1, "RapidOCR", "WARM BREAD", "WARN BREAD"],
        ["cafe КАФЕ", None, None, "tesseract", None, None],
    ]
    assert "tesseract lacks the language data of eng" in report.not_measured["text"]
    for reader in ("RapidOCR 3.", "tesseract 9: page mode 7"):
        assert reader in report.methods["text"]


def test_text_that_cannot_be_read_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without RapidOCR, tesseract reads everything that it has languages for, and this is said."""
    monkeypatch.setattr(text_accuracy, "load_rapidocr", RapidOcrReader)
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    missing = "the package rapidocr is not installed; the extra measure installs it"
    for folder in "ab":
        (tmp_path / folder).mkdir()
        Image.fromarray(noise(0, 20, 20)).save(tmp_path / folder / "P01-1.png")

    def reason(required: str) -> str:
        notes = Notes()
        report = compare(tmp_path / "a", tmp_path / "b", required={"P01": [required]}, lpips=False, reporter=notes)
        content = report.to_dict()
        said: str = content["not_measured"]["text"]
        without = f"tesseract reads all texts, and many of them worse: {missing}"
        assert notes.texts == [without] * ("text" in content["methods"])
        texts = content["pairs"][0]["text"]
        rates = dict.fromkeys(("original_cer", "quantized_cer", "original_read", "quantized_read"))
        expected = [{"required": required, "reader": "tesseract", **rates}] if ".png" in said else []
        assert (texts, content["summary"]["text"]) == (expected, None)
        assert (f"not used: {missing}" in content["methods"].get("text", "")) == bool(expected)
        return said.removeprefix("P01-1.png: tesseract ")

    monkeypatch.setenv("PATH", str(tmp_path))
    assert reason(SIGN) == f"{missing}; tesseract is not installed"
    for line, required, expected in (
        ("kill -SEGV $$", SIGN, "was ended by signal 11"),
        ("exit 3", SIGN, "failed with 3"),
        ("echo first >&2; printf 'last\\377' >&2; exit 1", SIGN, "failed with 1: last\ufffd"),
        ("exit 0", f"{RUSSIAN_SIGN} {SIGN}", "lacks the language data of eng, rus"),
    ):
        plant_program(tmp_path, monkeypatch, "eng" if required == SIGN else "deu", line)
        assert reason(required) == expected
    assert reason(" ") == "no texts are required in the images; give their suite with --prompts"
    plant_program(tmp_path, monkeypatch, "eng", "exec /bin/sleep 20")
    monkeypatch.setattr(tesseract_reader, "TIME_LIMIT", 0.5)
    assert reason(SIGN) == "took longer than 0.5 s"
    # All lines of an image together.
    plant_program(tmp_path, monkeypatch, "eng", "exec /bin/sleep 0.2")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    strips = [Image.new("RGB", (9, 9))] * 9
    with pytest.raises(NotMeasured, match=r"took longer than 0\.5 s"):
        tesseract_reader.find_tesseract().read_lines(strips, frozenset({"eng"}))
    (tmp_path / "tesseract").chmod(0o644)
    assert reason(SIGN) == f"{missing}; tesseract cannot be started: Permission denied"
