"""Read the text in an image with RapidOCR, whose package contains its networks; nothing is downloaded."""

from __future__ import annotations

import math
import os
import time
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from converter.errors import first_line, printable
from converter.libraries import QUANTIZING_ERRORS
from converter.measurement.comparison.perceptual import NotMeasured
from converter.measurement.comparison.reading_order import Line, in_both_orders
from converter.measurement.comparison.substring import normalize

Pixels = NDArray[np.uint8]

#: The networks that find lines and recognize them, as in the package.
MODELS = ("PP-OCRv6_det_small", "PP-OCRv6_rec_small")
#: The longer side in pixels to which smaller images are enlarged and larger ones are reduced. Of 640, 736, 960 and
#: 1440, small letters were read best with 960; large letters are lost with 1440.
LEAST_SIDE, MOST_SIDE = 960, 2048
#: Nothing is enlarged more than this: a single digit beside a word was lost in images of 128 pixels that were.
_MOST_TIMES = 4
#: The shorter side is padded to this many pixels, twice the grid of the network.
_LEAST_SHORT_SIDE = 64
#: Lines that are recognized in one image, the largest first; a full page of print has about 60.
MOST_LINES = 200
#: A line is narrowed to this many times its height; it then takes the network 0.2 s.
_MOST_ASPECT = 40.0
#: A line that is this many times as high as wide is turned to both sides; RapidOCR's own limit.
_TURNED_ASPECT = 1.5
#: Lines that are recognized with less confidence are left out; RapidOCR's own limit.
_LEAST_CONFIDENCE = 0.5
#: Time limit in seconds for one image.
TIME_LIMIT = 120.0
#: One thread each, since waiting threads of onnxruntime spin. Sizes and turned lines are handled here.
_OPTIONS: dict[str, Any] = {
    "Global.log_level": "critical",
    "Global.use_cls": False,
    "Global.use_preprocess_img": False,
    "Global.use_vertical_padding": False,
    "Det.limit_side_len": 32,
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
}

_LIBRARY_PATH = "LD_LIBRARY_PATH"
#: What loading and reading raise; onnxruntime and OpenCV have errors of their own.
_FAILURES = (*QUANTIZING_ERRORS, MemoryError, OSError)


@dataclass(frozen=True, eq=False)
class FoundLine:
    """A line of text, and the piece of the image that shows it."""

    line: Line
    confidence: float
    """How sure RapidOCR is of the text, from 0 to 1."""
    strip: Image.Image
    """Cut out of the image and turned upright."""


class RapidOcrReader:
    """RapidOCR's two networks; they give the same text in every run, and several threads may read at once.

    Raises:
        NotMeasured: a package or a network is missing or broken.
    """

    name = "RapidOCR"

    def __init__(self) -> None:
        try:
            # One of the packages that are imported adds filters for warnings.
            with warnings.catch_warnings(), _same_library_path():
                library, runtime = import_module("rapidocr"), import_module("onnxruntime")
                engine = library.RapidOCR
                state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
                session = import_module("rapidocr.inference_engine.onnxruntime.main")
                opencv = import_module("cv2")
            versions = f"{', '.join(MODELS)}, onnxruntime {version('onnxruntime')}"
            self.version = f"{self.name} {version('rapidocr')} ({versions})"
        except ModuleNotFoundError as error:
            reason = f"the package {error.name or 'rapidocr'} is not installed; the extra measure installs it"
            raise NotMeasured(printable(reason)) from error
        except (ImportError, *_FAILURES) as error:
            raise NotMeasured(f"RapidOCR cannot be imported: {first_line(error)}") from error
        errors = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
        self._failures = (*_FAILURES, *errors, session.ONNXRuntimeError, opencv.error)
        detecting, recognizing = _network_files(Path(str(library.__file__)).parent)
        try:
            self._characters = _dictionary(runtime, recognizing)
            options = {**_OPTIONS, "Det.model_path": str(detecting), "Rec.model_path": str(recognizing)}
            self._detector = engine(params={**options, "Global.use_rec": False})
            self._recognizer = engine(params={**options, "Global.use_det": False})
            # The networks are loaded by the first call.
            self.read(np.full((_LEAST_SHORT_SIDE, _LEAST_SHORT_SIDE, 3), 255, np.uint8))
            self._recognize(Image.new("RGB", (48, 48)))
        except self._failures as error:
            raise NotMeasured(f"the networks of RapidOCR cannot be loaded: {first_line(error)}") from error

    def can_read(self, string: str) -> bool:
        """Whether the dictionary has every character of a string, or what stands for it in a comparison."""
        return all(
            character in self._characters or self._characters.issuperset(normalize(character))
            for character in unicodedata.normalize("NFC", string)
        )

    def find_lines(self, image: Pixels) -> list[FoundLine]:
        """Find the lines of text in an image, upright, tilted or turned, and recognize them.

        Args:
            image: levels of shape (height, width, 3).

        Raises:
            NotMeasured: RapidOCR fails or takes too long.
        """
        end = time.monotonic() + TIME_LIMIT
        picture = _resized(image)
        found = []
        try:
            for corners in self._detect(picture):
                if time.monotonic() > end:
                    raise NotMeasured(f"RapidOCR took longer than {TIME_LIMIT:g} s")
                found.append(self._line(picture, corners))
        except self._failures as error:
            raise NotMeasured(f"RapidOCR failed: {first_line(error)}") from error
        return found

    def read(self, image: Pixels) -> tuple[str, str]:
        """Recognize the text of an image.

        Args:
            image: levels of shape (height, width, 3).

        Returns:
            The text in two orders: by rows of the image, and by groups of neighbouring lines.

        Raises:
            NotMeasured: as :meth:`find_lines`.
        """
        found = self.find_lines(image)
        return in_both_orders([each.line for each in found if each.confidence >= _LEAST_CONFIDENCE])

    def method(self) -> str:
        """How the text is recognized."""
        return (
            f"{self.version}: longer side enlarged to {LEAST_SIDE} pixels, at most {_MOST_TIMES} times, or reduced to "
            f"{MOST_SIDE} (Lanczos); lines upright, tilted or turned to a side, with a confidence of at least "
            f"{_LEAST_CONFIDENCE}, joined by rows of the image, and by rows of each group of neighbouring lines"
        )

    def _detect(self, picture: Image.Image) -> list[NDArray[np.float64]]:
        """Corners of the lines, in the order of RapidOCR."""
        found = self._detector(_levels(picture)).boxes
        if found is None:
            return []
        boxes = [np.asarray(box, np.float64) for box in found]
        largest = sorted(range(len(boxes)), key=lambda index: -math.prod(_sides(boxes[index])))[:MOST_LINES]
        return [boxes[index] for index in sorted(largest)]

    def _line(self, picture: Image.Image, corners: NDArray[np.float64]) -> FoundLine:
        """Recognize one line. A high one is read downwards and upwards, and the more confident way counts."""
        width, height = _sides(corners)
        strip = _cut(picture, corners)
        ways = [(strip, corners[1] - corners[0])]
        if height >= _TURNED_ASPECT * width:
            down = corners[3] - corners[0]
            turned = (strip.transpose(way) for way in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270))
            ways = list(zip(turned, (down, -down), strict=True))
        read = [(*self._recognize(strip), strip, direction) for strip, direction in ways]
        text, confidence, strip, direction = max(read, key=lambda way: way[1])
        return FoundLine(Line(text, corners, direction / np.linalg.norm(direction)), confidence, strip)

    def _recognize(self, strip: Image.Image) -> tuple[str, float]:
        least = math.ceil(strip.width / _MOST_ASPECT)
        if strip.height < least:
            strip = strip.resize((strip.width, least), Image.Resampling.BILINEAR)
        found = self._recognizer(_levels(strip))
        return (str(found.txts[0]), float(found.scores[0])) if found.txts else ("", 0.0)


@cache
def load_rapidocr() -> RapidOcrReader:
    """Load the networks once in a process, which takes about a second.

    Raises:
        NotMeasured: as :class:`RapidOcrReader`.
    """
    return RapidOcrReader()


@contextmanager
def _same_library_path() -> Iterator[None]:
    """Undo what OpenCV does to the path where programs, such as tesseract, look for libraries: it adds its own
    folder, and the working directory.
    """
    before = os.environ.get(_LIBRARY_PATH)
    try:
        yield
    finally:
        os.environ.pop(_LIBRARY_PATH, None)
        if before is not None:
            os.environ[_LIBRARY_PATH] = before


def _network_files(package: Path) -> list[Path]:
    """The files of ``MODELS`` in the package; RapidOCR would download one that is missing.

    Raises:
        NotMeasured: one is missing.
    """
    files = [package / "models" / f"{name}.onnx" for name in MODELS]
    for file in files:
        if not file.is_file():
            raise NotMeasured(f"RapidOCR lacks its network {file.name}; install the package rapidocr again")
    return files


def _dictionary(runtime: Any, path: Path) -> frozenset[str]:
    """The characters that the network recognizes; without them, RapidOCR would download others.

    Its Greek letters are those of formulas: of Greek words it reads a half.
    """
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    characters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    return frozenset(each for each in characters if "GREEK" not in unicodedata.name(each[:1], "")) | {" "}


def _resized(image: Pixels) -> Image.Image:
    """Enlarge or reduce an image, and pad its shorter side with its edge."""
    picture = Image.fromarray(image)
    longer = max(picture.size)
    side = min(max(longer, min(LEAST_SIDE, _MOST_TIMES * longer)), MOST_SIDE)
    if side != longer:
        size = [max(1, round(length * side / longer)) for length in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    missing = [max(0, _LEAST_SHORT_SIDE - length) for length in (picture.height, picture.width)]
    if any(missing):
        picture = Image.fromarray(np.pad(np.asarray(picture), ((0, missing[0]), (0, missing[1]), (0, 0)), "edge"))
    return picture


def _cut(picture: Image.Image, corners: NDArray[np.float64]) -> Image.Image:
    """Cut a line out of an image, turned upright by its corners."""
    upper_left, upper_right, lower_right, lower_left = corners.tolist()
    size = [max(1, round(side)) for side in _sides(corners)]
    quad = (*upper_left, *lower_left, *lower_right, *upper_right)
    return picture.transform((size[0], size[1]), Image.Transform.QUAD, quad, Image.Resampling.BICUBIC)


def _sides(corners: NDArray[np.float64]) -> tuple[float, float]:
    """Width and height of a line in pixels."""
    lengths = np.linalg.norm(corners - np.roll(corners, -1, axis=0), axis=1)
    return float(max(lengths[0], lengths[2])), float(max(lengths[1], lengths[3]))


def _levels(picture: Image.Image) -> Pixels:
    """Levels of shape (height, width, 3) in OpenCV's order: blue, green, red."""
    return np.ascontiguousarray(np.asarray(picture)[..., ::-1])
