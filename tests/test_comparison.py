"""Comparison of images: what belongs together, what is refused, and figures that follow the damage."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import sys
import zlib
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

import converter.measurement.comparison.text_accuracy as text_accuracy
from converter.errors import InputError, UsageError
from converter.measurement.comparison import images
from converter.measurement.comparison.compare import compare
from converter.measurement.comparison.images import read_pixels
from converter.measurement.comparison.pairs import find_pairs, parse_name
from converter.measurement.comparison.perceptual import Lpips, NotMeasured
from converter.measurement.comparison.pixels import psnr_db, ssim
from converter.measurement.comparison.rapidocr_reader import RapidOcrReader
from converter.measurement.comparison.report import TextAccuracy
from converter.measurement.comparison.substring import character_error_rate, normalize, substring_distance
from converter.measurement.comparison.tesseract_reader import _enlarged, languages_of
from converter.schemas import load_schema
from tests.benches import folded
from tests.cases import check_cases
from tests.conftest import Lensconv
from tests.expected import check_expected
from tests.pictures import END, Pixels, head, noise, pixels, png
from tests.reading import plant_program
from tests.reporters import Notes

SETTINGS = {"prompt": "a cat", "seed": 301, "steps": 20, "guidance": 5.0, "date": "2026-05-23"}


def save(path: Path, image: Pixels | None = None, settings: object = None, **options: Any) -> Path:
    """Write an image; settings as lensconv writes them, a string as it is."""
    path.parent.mkdir(exist_ok=True, parents=True)
    if settings is not None:
        texts = PngInfo()
        texts.add_itxt("lensconv", settings if isinstance(settings, str) else json.dumps(settings))
        options["pnginfo"] = texts
    Image.fromarray(noise() if image is None else image).save(path, **options)
    return path


def test_names_languages_and_character_error_rates() -> None:
    functions: dict[str, Any] = {
        "name": lambda name: [*vars(parse_name(Path(name))).values()],
        "language": lambda strings: "+".join(sorted(languages_of(*strings))),
        "rate": lambda required, text: round(character_error_rate(required, text), 4),
        "enlarged": lambda *size: Image.open(io.BytesIO(_enlarged(noise(0, *size[::-1])))).size,
    }
    check_cases("comparison_cases.jsonl", lambda kind, *arguments: functions[str(kind)](*arguments))
    with pytest.raises(ValueError, match="empty"):
        character_error_rate(" \n", "text")


def test_which_images_belong_together_and_which_are_refused(tmp_path: Path) -> None:
    """Of folders, and of files with a size, or changes to the settings, or the text of the settings, or its depth."""
    places = (tmp_path / str(number) for number in count())

    def outcome(folders: str, files: str | dict[str, Any]) -> object:
        place = next(places)
        for name, what in (dict.fromkeys(files.split()) if isinstance(files, str) else files).items():
            if not name.lower().endswith(("png", "webp")):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).touch()
                continue
            settings = {**SETTINGS, **what} if isinstance(what, dict) else "[" * what if isinstance(what, int) else what
            size = what if isinstance(what, list) else (12, 13)
            lossless = {"lossless": True} if name.lower().endswith("webp") else {}
            save(place / name, noise(0, *size), None if isinstance(what, list) else settings, **lossless)
        first, second, *others = (place / name for name in folders.split())
        notes = Notes()
        try:
            pairs = find_pairs(first, second, others[0] if others else None, reporter=notes)
            found: object = [*([*vars(pair).values()] for pair in pairs), *notes.texts]
        except InputError as error:
            found = f"{error.message} | {error.hint}"
        return json.loads(json.dumps(found, default=str).replace(f"{place}/", ""))

    check_cases("pairs.jsonl", outcome)


#: Files that break something.
ROWS = pixels(bytes(16 * 49))
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "no image": b"hello",
    # Pillow warns of an animation without images.
    "cut": png(head(16, 16), (b"acTL", bytes(8)), ROWS)[:-20],
    "bomb": png(head(60_000, 60_000), ROWS, END),
    "large": png(head(10_000, 10_000), ROWS, END),
    "text bomb": png(head(16, 16), (b"zTXt", b"lensconv\0\0" + zlib.compress(bytes(70_000_000))), ROWS, END),
    "broken pixels": png(head(16, 16), (b"IDAT", b"\0" * 40), END),
    "jpeg": b"\xff\xd8\xff\xe0" + bytes(40),
    "late head": png((b"tEXt", b"a\0b"), head(16, 16), ROWS, END),
    "late profile": png(head(16, 16), ROWS, (b"iCCP", b""), END),
    # Pillow writes no colours of 16 bits, and reads them as 8.
    "colours": png(head(96, 64, 16), pixels(b"".join(b"\0" + row.astype(">u2").tobytes() for row in noise())), END),
}


def test_pixels_become_rgb_or_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, alpha = noise(), np.full((64, 96, 1), 255, np.uint8)
    grey = image[..., 0]
    for name, least in (("opaque", 255), ("glass", 254)):
        alpha[3, 4] = least
        save(tmp_path / f"{name}.PNG", np.concatenate([image, alpha], axis=2))
        save(tmp_path / f"grey {name}.png", np.concatenate([image[..., :1], alpha], axis=2))
    save(tmp_path / "grey.png", grey)
    save(tmp_path / "hole in grey.png", grey, transparency=int(grey[0, 0]))
    palette, bits = Image.fromarray(grey).convert("P"), grey > 127
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "hole in palette.png", transparency=int(grey[0, 0]))
    Image.fromarray(bits).save(tmp_path / "bits.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    save(tmp_path / "lossy.webp", image, quality=80)
    save(tmp_path / "exact.webp", image, lossless=True)
    # A chunk of odd length before the pixels.
    save(tmp_path / "profile.webp", image, lossless=True, icc_profile=b"odd")
    for name in ("moving.png", "moving.webp"):
        save(tmp_path / name, save_all=True, append_images=[Image.fromarray(noise(1))])
    os.mkfifo(tmp_path / "pipe.png")
    for kind, content in HOSTILE.items():
        (tmp_path / f"{kind}.PNG").write_bytes(content)
    assert images.MAXIMUM_FILE_BYTES == 1 << 29

    def outcome(name: str, spare: int) -> str:
        """What a file is, or is refused with, where files may be that much longer."""
        monkeypatch.setattr(images, "MAXIMUM_FILE_BYTES", (tmp_path / name).stat().st_size + spare)
        try:
            found = read_pixels(tmp_path / name)
        except InputError as error:
            # What Pillow says of a broken file is Pillow's.
            said = re.sub("(image): .*", r"\1", error.message).replace(f"{tmp_path}/{name}: ", "")
            return f"{re.sub('than [0-9]+ bytes', 'than that', said)} | {error.hint}"
        kinds = {"colours": image, "grey": np.stack([grey] * 3, 2), "bits": np.stack([bits * 255] * 3, 2)}
        return next(kind for kind, pixels in kinds.items() if np.array_equal(found, pixels))

    check_cases("images.jsonl", outcome)


def test_psnr_and_ssim_of_known_damage() -> None:
    image = np.full((40, 50, 3), 100, np.uint8)
    assert (psnr_db(image, image), ssim(image, image)) == (None, 1)
    assert psnr_db(image, image + np.uint8(16)) == pytest.approx(20 * np.log10(255 / 16))
    # Flat images differ in luminance alone: (2ab + c) / (a^2 + b^2 + c), c = (0.01 * 255)^2.
    assert ssim(image, image + np.uint8(100)) == pytest.approx((40000 + 2.55**2) / (50000 + 2.55**2))
    with pytest.raises(ValueError, match="win_size"):
        ssim(noise(0, 10, 30), noise(1, 10, 30))


def test_ssim_is_that_of_wang_et_al() -> None:
    first = noise(0)[..., 0].astype(float)
    second = np.floor(first * 0.5 + noise(1)[..., 0] * 0.5)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        smooth: NDArray[np.float64] = ndimage.gaussian_filter(values, 1.5, truncate=3.5)[5:-5, 5:-5]
        return smooth

    means = mean(first), mean(second)
    variances = mean(first**2) - means[0] ** 2, mean(second**2) - means[1] ** 2
    covariance = mean(first * second) - means[0] * means[1]
    light = (2 * means[0] * means[1] + 2.55**2) / (means[0] ** 2 + means[1] ** 2 + 2.55**2)
    structure = (2 * covariance + 7.65**2) / (variances[0] + variances[1] + 7.65**2)
    planes = [np.repeat(plane[..., None], 3, axis=2).astype(np.uint8) for plane in (first, second)]
    assert ssim(*planes) == pytest.approx((light * structure).mean(), rel=1e-6)


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


def plant_tesseract(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """A program that knows English, and does what the line says when it is given an image; and no RapidOCR."""
    plant_program(folder, monkeypatch, "eng", line)
    monkeypatch.setattr(text_accuracy, "load_rapidocr", RapidOcrReader)
    monkeypatch.setitem(sys.modules, "rapidocr", None)


#: What lpips documents of its network: eval, and a call with two images of NCHW from -1 to 1.
NETWORK = """
import socket, sys, warnings

class LPIPS:
    def __init__(self, net, verbose):
        assert (net, verbose, socket.getdefaulttimeout()) == ("alex", False, 10)
        warnings.warn("old arguments")
        print("downloading", file=sys.stderr)

    def eval(self):
        return self.distance

    def distance(self, first, second):
        assert first.shape == second.shape and first.shape[:2] == (1, 3) and first.shape[2] < first.shape[3]
        if first.shape[2] < 32:
            raise RuntimeError("too small\\nfor this")
        assert -1 <= first.min() < 0 and 0 < first.max() <= 1
        return (first - second).abs().mean().reshape(1, 1, 1, 1)
"""


def plant_lpips(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A package lpips of these lines."""
    (folder / "lpips").mkdir()
    (folder / "lpips" / "__init__.py").write_text(body)
    (folder / "lpips-0.1.4.dist-info").mkdir()
    (folder / "lpips-0.1.4.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: lpips\nVersion: 0.1.4\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "lpips", raising=False)


NO_WEIGHTS = "no weights of alex for lpips"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def LPIPS(net, verbose):\n    raise OSError('no name\\nmore')\n", f"{NO_WEIGHTS}: no name"),
        ("raise ImportError\n", "the package lpips is not installed; the extra lpips installs it"),
        ("import torch_is_not_here\n", "the package torch_is_not_here is not installed; the extra lpips installs it"),
        ("raise RuntimeError\n", "lpips cannot be imported: RuntimeError"),
        ("def LPIPS(**_):\n    raise EOFError", f"{NO_WEIGHTS}: EOFError"),
        ("import pickle\ndef LPIPS(**_):\n    pickle.loads(b'x')", f"{NO_WEIGHTS}: invalid load key, 'x'."),
        ("import zipfile\ndef LPIPS(**_):\n    zipfile.ZipFile(__file__)", f"{NO_WEIGHTS}: File is not a zip file"),
    ],
)
def test_lpips_without_weights_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    plant_lpips(tmp_path, monkeypatch, body)
    with pytest.raises(NotMeasured) as caught:
        Lpips()
    assert (str(caught.value), socket.getdefaulttimeout()) == (reason, None)


SHOPS = """
name = "shops"
prompts = [
  {id = "P01", scenario = "A", seed = 1, prompt = 'signs "BREAD" and "OVEN"', required_text = ["BREAD", "OVEN"]},
  {id = "P02-302", scenario = "B", seed = 2, prompt = 'вывеска "ХЛЕБ"', required_text = ["ХЛЕБ"]},
  {id = "P04", scenario = "C", seed = 3, prompt = "a cube"},
  {id = "P03", scenario = "D", seed = 4, prompt = "a cone"}, {id = "P06", scenario = "E", seed = 5, prompt = "a ball"},
]
"""


def test_the_whole_evidence_and_what_is_shown_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], lensconv: Lensconv
) -> None:
    """With every figure and a baseline; then without, and without settings or of images that are too small."""
    plant_lpips(tmp_path, monkeypatch, NETWORK)
    # The image with a pattern takes more bytes than the plain one.
    size = f"$({shutil.which('wc')} -c)"
    shown = f'[ "$6" = 6 ] || {{ printf "QQ\\377"; exit; }}; [ {size} -gt 50000 ] && echo brad ovn || echo Bread OVEN'
    plant_tesseract(tmp_path, monkeypatch, shown)
    plain = np.full((128, 160, 3), 120, np.uint8)
    plain[:4] = 200
    grainy = plain + noise(3, 128, 160) % 4
    wave = (np.arange(160) % 16 < 8)[None, :, None] * np.uint8(8)
    for folder, image, seed, role in (("a", plain, 301, "original"), ("b", grainy + wave, 301, "quantized")):
        save(tmp_path / folder / f"P01-301-{role}.png", image, {**SETTINGS, "seed": seed})
        save(tmp_path / folder / "P02-302.png", noise(1), {**SETTINGS, "seed": 302, "steps": 20})
        save(tmp_path / folder / "door.png", noise(ord(folder), 20, 40))
    save(tmp_path / "c" / "P01-401-baseline.png", np.roll(grainy, 40, axis=0), {**SETTINGS, "seed": 401})
    save(tmp_path / "c" / "P02-402.png", noise(2))
    save(tmp_path / "c" / "door.png", noise(5, 20, 40))
    (tmp_path / "shops.toml").write_text(SHOPS)
    monkeypatch.setenv("COLUMNS", "150")
    lines = []
    for options in (
        ("--baseline", tmp_path / "c", "--prompts", tmp_path / "shops.toml"),
        ("--steps", 20, "--no-lpips", "--no-text"),
    ):
        outcome, again = (lensconv("compare", tmp_path / "a", tmp_path / "b", *options, "--json") for _ in range(2))
        assert (outcome.code, outcome.stdout) == (0, again.stdout)
        jsonschema.validate(outcome.result, load_schema("image_fidelity"))
        # Machines differ in the last digits.
        content = json.loads(outcome.stdout, parse_float=lambda figure: float(f"{float(figure):.4g}"))
        text = lensconv("compare", tmp_path / "a", tmp_path / "b", *options)
        lines += [folded(content), text.stdout, text.stderr]
    assert capfd.readouterr() == ("", "")
    versions = r"\b(scipy|scikit-image) [\d.]+\d"
    check_expected("comparison.txt", re.sub(versions, r"\1 VERSION", "\n".join(lines)).replace(str(tmp_path), "FOLDER"))
    with pytest.raises(UsageError, match=r"P01-301-original\.png: was made in 20 steps, not in the 4 of --steps"):
        compare(tmp_path / "a", tmp_path / "b", steps=4)


def test_figures_have_six_decimals(tmp_path: Path) -> None:
    for number, folder in enumerate("ab"):
        save(tmp_path / folder / "P-1.png", noise(number, 20, 40))
    report = compare(tmp_path / "a", tmp_path / "b", lpips=False, reporter=(notes := Notes()))
    assert (notes.shown[0].done, notes.shown[0].total) == (1, 1)
    content, exact = report.to_dict(), report.pairs[0].quantized.ssim
    assert content["pairs"][0]["ssim"] == content["summary"]["ssim"]["mean"] == round(exact, 6) != exact
    found = (0.2, 0.2), (0.5, None), (None, 0.5)
    pair = replace(
        report.pairs[0], text=tuple(TextAccuracy("A", one, other, "tesseract", "a", None) for one, other in found)
    )
    assert [*replace(report, pairs=(pair,)).summary["text"].values()] == [1, 0.2, 0.2, 1, 1]
