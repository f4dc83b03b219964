"""Comparison of images: what belongs together, what is refused, and figures that follow the damage."""

from __future__ import annotations

import io
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import jsonschema
import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.PngImagePlugin import PngInfo
from rich.console import Console as RichConsole
from scipy import ndimage

import converter.measurement.comparison.text_accuracy as text_accuracy
from converter.cli.compare import _render
from converter.console import SILENT
from converter.errors import InputError, MissingInput, UsageError
from converter.measurement.comparison.compare import compare
from converter.measurement.comparison.images import read_pixels
from converter.measurement.comparison.pairs import find_pairs, parse_name
from converter.measurement.comparison.perceptual import Lpips, NotMeasured
from converter.measurement.comparison.pixels import psnr_db, ssim
from converter.measurement.comparison.report import (
    FidelityReport,
    ImageFidelity,
    PairFidelity,
    PeriodicGrid,
    TextAccuracy,
)
from converter.measurement.comparison.substring import character_error_rate, normalize, substring_distance
from converter.measurement.comparison.text_accuracy import find_reader, language_of
from converter.schemas import load_schema
from tests.conftest import Lensconv
from tests.pictures import END, Pixels, head, noise, pixels, png
from tests.reporters import Notes

SETTINGS = {"prompt": "a cat", "seed": 301, "steps": 20, "guidance": 5.0, "date": "2026-05-23"}
SIGN = "WARM BREAD"
RUSSIAN_SIGN = "ТЁПЛЫЙ ХЛЕБ"


def save(path: Path, image: Pixels | None = None, settings: object = None, **options: Any) -> Path:
    """Write an image; settings as lensconv writes them, a string as it is."""
    path.parent.mkdir(exist_ok=True)
    if settings is not None:
        texts = PngInfo()
        texts.add_itxt("lensconv", settings if isinstance(settings, str) else json.dumps(settings))
        options["pnginfo"] = texts
    Image.fromarray(noise() if image is None else image).save(path, **options)
    return path


def folders(tmp_path: Path, *names: str) -> tuple[Path, Path]:
    """Two folders with images of these names."""
    for number, folder in enumerate(("original", "quantized")):
        for name in names:
            save(tmp_path / folder / name, noise(number))
    return tmp_path / "original", tmp_path / "quantized"


def refusal(first: Path, second: Path, baseline: Path | None = None) -> str:
    """What a comparison is refused with; one line and exit code 2."""
    with pytest.raises((UsageError, MissingInput)) as caught:
        compare(first, second, baseline=baseline, text=False, lpips=False)
    assert isinstance(caught.value, InputError)
    assert "\n" not in caught.value.message
    return caught.value.message


def sign(text: str, *, size: int = 24) -> Pixels:
    """A board with a text."""
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
    board = Image.new("RGB", (256, 96), (205, 190, 160))
    ImageDraw.Draw(board).text((128, 48), text, fill=(35, 25, 20), font=font, anchor="mm")
    return np.asarray(board)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("P01-301-original.png", ("P01-301", "P01", 301)),
        ("P01-301-quantized.webp", ("P01-301", "P01", 301)),
        ("a-b-7-baseline.png", ("a-b-7", "a-b", 7)),
        ("shop-2-12.png", ("shop-2-12", "shop-2", 12)),
        ("P01.png", ("P01", "P01", None)),
        ("12.png", ("12", "12", None)),
        ("P01-301-other.png", ("P01-301-other", "P01-301-other", None)),
        ("P01-٣.png", ("P01-٣", "P01-٣", None)),
    ],
)
def test_names_tell_id_and_seed(name: str, expected: tuple[str, str, int | None]) -> None:
    image = parse_name(Path(name))
    assert (image.key, image.id, image.seed) == expected


def test_pairs_and_their_baseline(tmp_path: Path) -> None:
    for key in ("P02-302", "P01-301"):
        save(tmp_path / "a" / f"{key}-original.png", settings={**SETTINGS, "seed": int(key[-3:])})
        save(tmp_path / "b" / f"{key}-quantized.webp", lossless=True)
        save(tmp_path / "c" / f"{key[:4]}9-baseline.png")
    save(tmp_path / "a" / "sketch.jpg")
    (tmp_path / "a" / "notes.txt").touch()
    notes = Notes()
    pairs = find_pairs(tmp_path / "a", tmp_path / "b", tmp_path / "c", reporter=notes)
    assert [(pair.id, pair.seed, pair.steps, pair.baseline_seed) for pair in pairs] == [
        ("P01", 301, 20, 9),
        ("P02", 302, 20, 9),
    ]
    assert [pair.quantized.name for pair in pairs] == ["P01-301-quantized.webp", "P02-302-quantized.webp"]
    assert len(notes.texts) == 1
    assert "sketch.jpg" in notes.texts[0]
    assert "notes" not in notes.texts[0]


def test_images_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    first, second = folders(tmp_path, "P01-301.png", "P02-302.png")
    assert "given twice" in refusal(first, first)
    assert "given twice" in refusal(first, second, second)
    assert "No such file" in refusal(first, tmp_path / "nowhere")
    assert "Not a directory" in refusal(first, second / "P01-301.png")
    (tmp_path / "empty").mkdir()
    assert "no images" in refusal(first, tmp_path / "empty")
    lonely = save(first / "P03-303.png")
    assert "only one of them has original/P03-303.png" in refusal(first, second)
    lonely.rename(first / "P02-309.png")
    (first / "P02-302.png").unlink()
    expected = "original/P02-309.png and quantized/P02-302.png: the same id with different seeds"
    assert expected in refusal(first, second)
    save(first / "P02-309-original.png")
    assert "are two images of P02-309" in refusal(first, second)
    # Too small for the window of SSIM.
    for folder in "ab":
        save(tmp_path / folder / "dot-1.png", noise(1, 10, 40))
    assert "a/dot-1.png: is smaller than 11 pixels" in refusal(tmp_path / "a", tmp_path / "b")


def test_baselines_need_the_same_id_and_another_seed(tmp_path: Path) -> None:
    first, second = folders(tmp_path, "P01-301.png", "P02-302.png")
    save(tmp_path / "c" / "P01-401.png")
    assert "only one of them has original/P02-302.png" in refusal(first, second, tmp_path / "c")
    same = save(tmp_path / "c" / "P02-302.png")
    assert "c/P02-302.png: has the same seed as original/P02-302.png" in refusal(first, second, tmp_path / "c")
    same.unlink()
    save(tmp_path / "c" / "P02-402.png", noise(3, 32, 32))
    assert "32x32 pixels" in refusal(first, second, tmp_path / "c")


@pytest.mark.parametrize(
    ("name", "value"), [("prompt", "a dog"), ("steps", 4), ("guidance", 1.0), ("date", "2026-01-01"), ("seed", 5)]
)
def test_settings_that_disagree_are_refused(tmp_path: Path, name: str, value: object) -> None:
    save(tmp_path / "a" / "cat.png", settings=SETTINGS)
    save(tmp_path / "b" / "cat.png", settings={**SETTINGS, name: value})
    message = refusal(tmp_path / "a", tmp_path / "b")
    assert f"a/cat.png and b/cat.png: differ in {name}: {SETTINGS[name]} and {value}" in message


def test_files_know_their_seed_better_than_their_names(tmp_path: Path) -> None:
    for folder, seed in (("a", 301), ("b", 301), ("c", 302)):
        save(tmp_path / folder / "door-2.png", settings={**SETTINGS, "seed": seed})
    (pair,) = find_pairs(tmp_path / "a", tmp_path / "b", tmp_path / "c", reporter=SILENT)
    assert (pair.key, pair.id, pair.seed, pair.baseline_seed) == ("door-2", "door-2", 301, 302)
    save(tmp_path / "d" / "cat-5.png")
    save(tmp_path / "e" / "cat-5.png", settings=SETTINGS)
    assert "differ in seed: 5 and 301" in refusal(tmp_path / "d", tmp_path / "e")


def test_steps_must_be_those_of_the_images(tmp_path: Path) -> None:
    for folder in "ab":
        save(tmp_path / folder / "cat-301.png", settings=SETTINGS)
    with pytest.raises(UsageError, match="in 20 steps, not in the 4 of --steps"):
        compare(tmp_path / "a", tmp_path / "b", steps=4)


@pytest.mark.parametrize(
    "settings",
    ["{", "[" * 100_000, "[]", "null", '{"odd": 1e999}', '{"prompt": null, "steps": null, "odd": {}}'],
    ids=["cut", "deep", "list", "null", "infinite", "nothing told"],
)
def test_malformed_settings_are_no_settings(tmp_path: Path, settings: str) -> None:
    save(tmp_path / "a" / "cat.png", settings=settings)
    save(tmp_path / "b" / "cat.png", settings=SETTINGS)
    (pair,) = find_pairs(tmp_path / "a", tmp_path / "b", None, reporter=SILENT)
    assert (pair.seed, pair.steps) == (301, 20)


ROWS = pixels(bytes(16 * 49))
#: Files that break something.
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "no image": b"hello",
    "cut": png(head(16, 16), ROWS)[:-20],
    "bomb": png(head(60_000, 60_000), ROWS, END),
    "large": png(head(10_000, 10_000), ROWS, END),
    "text bomb": png(head(16, 16), (b"zTXt", b"lensconv\0\0" + zlib.compress(bytes(70_000_000))), ROWS, END),
    "broken pixels": png(head(16, 16), (b"IDAT", b"\0" * 40), END),
    "jpeg": b"\xff\xd8\xff\xe0" + bytes(40),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    first, second = folders(tmp_path, "cat-1.png")
    save(first / "cat-1.png", noise(0, 16, 16))
    (second / "cat-1.png").write_bytes(HOSTILE[kind])
    assert "quantized/cat-1.png" in refusal(first, second)


def test_pixels_become_rgb_or_are_refused(tmp_path: Path) -> None:
    image = noise()
    alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
    save(tmp_path / "opaque.png", np.concatenate([image, alpha], axis=2))
    assert np.array_equal(read_pixels(tmp_path / "opaque.png"), image)
    alpha[3, 4] = 254
    save(tmp_path / "glass.png", np.concatenate([image, alpha], axis=2))
    with pytest.raises(UsageError, match=r"glass\.png: is partly transparent"):
        read_pixels(tmp_path / "glass.png")
    grey = save(tmp_path / "grey.png", image[..., 0])
    assert np.array_equal(read_pixels(grey), np.repeat(image[..., :1], 3, axis=2))
    Image.fromarray(image[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    # Pillow writes no colours of 16 bits, and reads them as 8.
    deep_colours = pixels(b"".join(b"\0" + row.astype(">u2").tobytes() for row in image))
    (tmp_path / "colours.png").write_bytes(png(head(96, 64, bits=16), deep_colours, END))
    for name in ("deep.png", "colours.png"):
        with pytest.raises(UsageError, match="has 16 bits per channel, not 8"):
            read_pixels(tmp_path / name)
    with pytest.raises(UsageError, match="lossy"):
        read_pixels(save(tmp_path / "lossy.webp", image, quality=80))
    assert np.array_equal(read_pixels(save(tmp_path / "exact.webp", image, lossless=True)), image)
    frames = [Image.fromarray(noise(seed)) for seed in range(2)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    with pytest.raises(UsageError, match="more than one image"):
        read_pixels(tmp_path / "moving.png")


def test_psnr_and_ssim_of_known_damage() -> None:
    image = np.full((40, 50, 3), 100, np.uint8)
    assert psnr_db(image, image) is None
    assert ssim(image, image) == 1
    assert psnr_db(image, image + np.uint8(16)) == pytest.approx(20 * np.log10(255 / 16))
    # Flat images differ in luminance alone: (2ab + c) / (a^2 + b^2 + c), c = (0.01 * 255)^2.
    assert ssim(image, image + np.uint8(100)) == pytest.approx((40000 + 2.55**2) / (50000 + 2.55**2))
    with pytest.raises(ValueError, match="win_size"):
        ssim(noise(0, 10, 30), noise(1, 10, 30))


def test_ssim_is_that_of_wang_et_al() -> None:
    first, second = noise(0)[..., 0].astype(float), noise(0)[..., 0] * 0.5 + noise(1)[..., 0] * 0.5
    second = np.floor(second)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        smooth: NDArray[np.float64] = ndimage.gaussian_filter(values, 1.5, truncate=3.5)[5:-5, 5:-5]
        return smooth

    means = mean(first), mean(second)
    variances = mean(first**2) - means[0] ** 2, mean(second**2) - means[1] ** 2
    covariance = mean(first * second) - means[0] * means[1]
    light = (2 * means[0] * means[1] + 2.55**2) / (means[0] ** 2 + means[1] ** 2 + 2.55**2)
    structure = (2 * covariance + 7.65**2) / (variances[0] + variances[1] + 7.65**2)
    images = [np.repeat(plane[..., None], 3, axis=2).astype(np.uint8) for plane in (first, second)]
    assert ssim(*images) == pytest.approx((light * structure).mean(), rel=1e-6)


def oracle(string: str, text: str) -> int:
    """The distance by the definition, cell by cell."""
    above = [0] * (len(text) + 1)
    for number, letter in enumerate(string, 1):
        row = [number]
        for place, other in enumerate(text, 1):
            row.append(min(above[place - 1] + (letter != other), above[place] + 1, row[place - 1] + 1))
        above = row
    return min(above)


@given(st.text("abc \U0001f600", max_size=12), st.text("abc \U0001f600", max_size=40))
def test_substring_distance_is_that_of_the_definition(string: str, text: str) -> None:
    assert substring_distance(string, text) == oracle(string, text)


@given(st.text(), st.text(max_size=5), st.text(max_size=5))
def test_a_string_is_found_wherever_it_stands(string: str, before: str, after: str) -> None:
    assert substring_distance(string, before + string + after) == 0
    assert normalize(normalize(string)) == normalize(string)


@pytest.mark.parametrize(
    ("required", "text", "expected"),
    [
        ("WARM BREAD", "x\nwarm \n  bread.", 0),
        ("“Йод” — «юг»", '"\u0438\u0306\u043e\u0434" - "ЮГ"', 0),
        ("bread", "", 1),
        ("bread", "beard", 0.4),
        ("bread", "zzz", 1),
        ("bread", "a brad b", 0.2),
        ("STRASSE", "straße", 0),
        ("йод", "иод", 1 / 3),
        ("x²", "x2", 1 / 2),
    ],
)
def test_character_error_rate(required: str, text: str, expected: float) -> None:
    assert character_error_rate(required, text) == pytest.approx(expected)


def test_an_empty_string_cannot_be_required() -> None:
    with pytest.raises(ValueError, match="empty"):
        character_error_rate(" \n", "text")


@pytest.mark.parametrize(
    ("strings", "language"),
    [(["Bread"], "eng"), (["Хлеб"], "rus"), (["Bread", "Хлеб"], "eng+rus"), (["24 / 7"], "eng"), ([], "eng")],
)
def test_languages_follow_the_scripts(strings: list[str], language: str) -> None:
    assert language_of(strings) == language


@pytest.fixture(scope="module")
def reader() -> text_accuracy.TextReader:
    """Tesseract with what the tests need."""
    try:
        found = find_reader()
    except NotMeasured as reason:
        pytest.skip(str(reason))
    if not {"eng", "rus"} <= found.languages:
        pytest.skip("tesseract has no training for English and Russian")
    return found


@pytest.mark.parametrize(
    ("text", "damaged"),
    [(SIGN, ("WARM BEAD", "WRAM BEDRA", "XKOV QUIZ")), (RUSSIAN_SIGN, ("ТЁПЛЫЙ ХЕБ", "ПЁТЛЙЫ ЛХБЕ", "ФУЩ ЮЖЦГ"))],
)
def test_text_errors_follow_the_damage(reader: text_accuracy.TextReader, text: str, damaged: tuple[str, ...]) -> None:
    rates = [reader.error_rates(sign(shown), [text])[0] for shown in (text, *damaged)]
    assert rates == sorted(rates)
    assert rates[0] <= 0.1 < rates[2] < rates[3]
    assert rates[1] <= text_accuracy.LEGIBLE


def test_what_is_blurred_or_noisy_reads_worse(reader: text_accuracy.TextReader) -> None:
    image = sign(SIGN)
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(6)))
    static = np.clip(image + np.random.default_rng(0).normal(0, 200, image.shape), 0, 255).astype(np.uint8)
    assert reader.error_rates(image, [SIGN]) == (0,)
    assert reader.error_rates(blurred, [SIGN])[0] > 0.4
    assert reader.error_rates(static, [SIGN])[0] > 0.4


def test_the_best_way_to_look_at_a_page_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tesseract"
    program.write_text(f"#!/bin/sh\ncase $6 in 6) echo {SIGN};; *) echo QQ;; esac\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    fake = text_accuracy.TextReader("tesseract 9", frozenset(["eng"]))
    assert fake.error_rates(sign(SIGN), [SIGN, "OVEN"]) == (0, 0.75)


def test_text_that_cannot_be_read_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = folders(tmp_path, "P01-1.png")
    required = {"P01": [SIGN]}

    def run() -> tuple[list[Any], str]:
        content = compare(first, second, required=required, lpips=False).to_dict()
        jsonschema.validate(content, load_schema("image_fidelity"))
        assert content["summary"]["text"] is None
        return content["pairs"][0]["text"], content["not_measured"]["text"]

    monkeypatch.setenv("PATH", str(tmp_path))
    assert run() == ([], "tesseract is not installed")
    program = tmp_path / "tesseract"
    program.write_text('#!/bin/sh\ncase $1 in --*) printf "tesseract 9\\neng\\n";; *) kill -SEGV $$;; esac\n')
    program.chmod(0o755)
    texts, reason = run()
    assert texts == [{"required": SIGN, "original_cer": None, "quantized_cer": None}]
    assert reason == "P01-1.png: tesseract was ended by signal 11"
    required["P01"] = [RUSSIAN_SIGN]
    assert run()[1] == "P01-1.png: tesseract lacks the language data of rus"
    monkeypatch.setattr(text_accuracy, "TIME_LIMIT", 0.2)
    program.write_text('#!/bin/sh\ncase $1 in --*) printf "tesseract 9\\nrus\\n";; *) exec /bin/sleep 20;; esac\n')
    assert run()[1] == "P01-1.png: tesseract took longer than 0.2 s"


class FakeNetwork:
    """What lpips documents of its network: eval, and a call with two images of NCHW from -1 to 1."""

    def eval(self) -> FakeNetwork:
        """As torch's modules."""
        return self

    def __call__(self, first: Any, second: Any) -> Any:
        """The mean difference, in the shape of lpips' result."""
        assert first.shape == second.shape == (1, 3, 64, 96)
        assert first.min() >= -1
        assert first.max() <= 1
        return (first - second).abs().mean().reshape(1, 1, 1, 1)


def plant_lpips(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A package lpips of these lines."""
    (folder / "lpips").mkdir(exist_ok=True)
    (folder / "lpips" / "__init__.py").write_text(body)
    (folder / "lpips-0.1.4.dist-info").mkdir(exist_ok=True)
    (folder / "lpips-0.1.4.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: lpips\nVersion: 0.1.4\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "lpips", raising=False)


def test_lpips_is_measured_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "import warnings\nfrom tests.test_comparison import FakeNetwork\ndef LPIPS(net, verbose):\n"
    plant_lpips(tmp_path, monkeypatch, body + "    warnings.warn('old arguments')\n    return FakeNetwork()\n")
    network = Lpips()
    assert network.distance(noise(), noise()) == 0
    expected = np.abs(noise(0) / 127.5 - noise(1) / 127.5).mean()
    assert network.distance(noise(0), noise(1)) == pytest.approx(expected, rel=1e-4)
    assert "lpips 0.1.4" in network.method()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def LPIPS(net, verbose):\n    raise OSError('name resolution failed\\nmore')\n", "name resolution failed"),
        ("import torchvision_is_not_here\n", "torchvision_is_not_here is not installed"),
        ("def LPIPS(net, verbose):\n    raise RuntimeError('invalid hash')\n", "invalid hash"),
    ],
)
def test_lpips_without_weights_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    plant_lpips(tmp_path, monkeypatch, body)
    with pytest.raises(NotMeasured, match=reason) as caught:
        Lpips()
    assert "\n" not in str(caught.value)


def test_a_string_with_one_wrong_letter_of_five_is_legible() -> None:
    image = ImageFidelity(True, None, 1.0, None, PeriodicGrid(None, None, None))
    texts = (TextAccuracy("BREAD", 0.2, 0.2), TextAccuracy("OVEN", 0.25, 0.0))
    pair = PairFidelity("P01", 1, 4, 64, 64, image, None, None, texts)
    summary = FidelityReport(4, (pair,), {}, {}).summary["text"]
    assert (summary["original_legible"], summary["quantized_legible"]) == (0.5, 1)


@pytest.mark.usefixtures("reader")
def test_the_report_and_its_rendering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    wavy = sign(SIGN) + (np.arange(256) % 16 < 8)[None, :, None] * np.uint8(8)
    save(tmp_path / "a" / "P01-1-original.png", sign(SIGN), {**SETTINGS, "seed": 1})
    save(tmp_path / "b" / "P01-1-quantized.png", wavy.astype(np.uint8), {**SETTINGS, "seed": 1})
    save(tmp_path / "c" / "P01-2-baseline.png", np.roll(sign(SIGN), 20, axis=1), {**SETTINGS, "seed": 2})
    for folder in "ab":
        save(tmp_path / folder / "P02-1.png", noise())
    save(tmp_path / "c" / "P02-2.png", noise(1))
    required = {"P01": [SIGN], "P02": [], "P03": ["absent"]}
    notes = Notes()
    report, again = (
        compare(tmp_path / "a", tmp_path / "b", baseline=tmp_path / "c", required=required, reporter=notes)
        for _ in range(2)
    )
    content = report.to_dict()
    assert json.dumps(content, allow_nan=False) == json.dumps(again.to_dict())
    jsonschema.validate(content, load_schema("image_fidelity"))
    assert notes.texts == ["no images of these prompts: P03"] * 2
    first, second = content["pairs"]
    assert (first["num_inference_steps"], second["num_inference_steps"]) == (20, None)
    assert content["num_inference_steps"] is None
    # A wave between 0 and 8 is 4 levels strong.
    assert first["periodic_grid"]["added"] == pytest.approx(4, rel=0.15)
    assert first["baseline"]["periodic_grid"]["added"] < 2
    assert (second["identical"], second["psnr_db"], second["ssim"]) == (True, None, 1)
    assert second["periodic_grid"]["added"] == 0
    assert first["text"] == [{"required": SIGN, "original_cer": 0, "quantized_cer": 0}]
    summary = content["summary"]
    assert summary["psnr_db"]["count"] == 1
    assert summary["ssim"]["count"] == 2
    assert summary["lpips"] is None
    assert summary["baseline"]["ssim"]["count"] == 2
    assert summary["text"]["quantized_legible"] == 1
    assert "lpips is not installed" in content["not_measured"]["lpips"]
    stream = io.StringIO()
    RichConsole(file=stream, width=200).print(*_render(report))
    shown = stream.getvalue()
    assert "Unknown number of steps. These figures measure drift at the same seed, not quality." in shown
    assert "identical" in shown
    assert "0.00 → 0.00" in shown


def test_small_images_have_no_grid_score_rather_than_none_of_it(tmp_path: Path) -> None:
    for number, folder in enumerate("ab"):
        save(tmp_path / folder / "P-1.png", noise(number, 20, 40))
    report = compare(tmp_path / "a", tmp_path / "b", steps=20, lpips=False)
    content, exact = report.to_dict(), report.pairs[0].quantized.ssim
    jsonschema.validate(content, load_schema("image_fidelity"))
    assert content["pairs"][0]["ssim"] == content["summary"]["ssim"]["mean"] == round(exact, 6) != exact
    assert content["num_inference_steps"] == 20
    assert content["pairs"][0]["periodic_grid"] == {"original": None, "quantized": None, "added": None}
    assert content["summary"]["periodic_grid_added"] is None
    assert content["not_measured"] == {
        "lpips": "not requested",
        "text": "no texts are required in the images; give their suite with --prompts",
    }


def test_the_command_prints_the_evidence(tmp_path: Path, lensconv: Lensconv) -> None:
    first, second = folders(tmp_path, "P01-1.png")
    outcome = lensconv("compare", first, second, "--steps", 20, "--no-lpips", "--no-text", "--json")
    jsonschema.validate(outcome.result, load_schema("image_fidelity"))
