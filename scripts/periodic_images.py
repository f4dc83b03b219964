"""Images, changes and patterns for the experiment on the periodic-grid score; all of them follow from seeds."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

Pixels = NDArray[np.uint8]
Levels = NDArray[np.floating[Any]]

#: Photographs and scans whose files are part of scikit-image.
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
)
#: Those that show a wall or a page of text.
REGULAR_PHOTOGRAPHS = ("brick.png", "page.png")
#: Crops of each photograph.
CROPS = 4
#: Images of each drawn kind.
DRAWN = 6
WORDS = ("quick", "brown", "fox", "jumps", "over", "lazy", "dog", "while", "seven", "wizards", "box", "with", "quartz")


@dataclass(frozen=True)
class Scene:
    """An image, and another of the same kind: same subject, other details."""

    name: str
    natural: bool
    """Whether it is a photograph, or drawn with a photograph's statistics, without regular structure."""
    image: Pixels
    other: Pixels


def scenes(side: int, share: int = 1) -> Iterator[Scene]:
    """One of so many of all scenes, ``side`` pixels high and wide, without photographs that are smaller."""
    photographs = [name for name in PHOTOGRAPHS if min(_open(name).size) >= side]
    natural = [name not in REGULAR_PHOTOGRAPHS for name in photographs] + [kind[0] for kind in KINDS.values()]
    names = [*photographs, *KINDS]
    numbered = [
        (name, is_natural, number)
        for name, is_natural in zip(names, natural, strict=True)
        for number in range(CROPS if name in PHOTOGRAPHS else DRAWN)
    ]
    for name, is_natural, number in numbered[::share]:
        image, other = (_draw(name, side, number, half) for half in range(2))
        yield Scene(f"{name} {number}", is_natural, image, other)


def _draw(name: str, side: int, number: int, half: int) -> Pixels:
    random = np.random.default_rng([number, half, len(name)])
    if name in KINDS:
        return KINDS[name][1](random, side)
    photograph = np.asarray(_open(name))
    top, left = (int(random.integers(length - side + 1)) for length in photograph.shape[:2])
    return photograph[top : top + side, left : left + side]


def _open(name: str) -> Image.Image:
    return Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")


def to_pixels(levels: Levels) -> Pixels:
    """Round and clip levels of shape (height, width) or (height, width, 3) to an RGB image."""
    if levels.ndim == 2:
        levels = np.repeat(levels[..., None], 3, axis=2)
    result: Pixels = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return result


def cloud(random: np.random.Generator, side: int, exponent: float) -> Levels:
    """A field of mean 0 and deviation 1 whose amplitude falls with that power of the frequency."""
    rows, columns = np.fft.fftfreq(2 * side)[:, None], np.fft.rfftfreq(2 * side)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(random.standard_normal((2 * side, 2 * side))) / frequency**exponent
    field = np.fft.irfft2(spectrum)[:side, :side]
    result: Levels = (field - field.mean()) / field.std()
    return result


def draw_clouds(random: np.random.Generator, side: int) -> Pixels:
    """Coloured noise with a photograph's spectrum."""
    exponent = random.uniform(0.9, 1.5)
    shared = cloud(random, side, exponent)
    channels = [128 + 45 * shared + 12 * cloud(random, side, exponent) for _ in range(3)]
    return to_pixels(np.stack(channels, axis=2))


def draw_gradient(random: np.random.Generator, side: int) -> Pixels:
    """A smooth gradient with a slight curve, like a sky."""
    rows, columns = np.mgrid[:side, :side] / side
    angle, bend = random.uniform(0, 6.28), random.uniform(-1, 1)
    slope = np.cos(angle) * rows + np.sin(angle) * columns + bend * rows * columns
    return to_pixels(np.stack([random.uniform(60, 190) + random.uniform(20, 90) * slope for _ in range(3)], axis=2))


def draw_composition(random: np.random.Generator, side: int) -> Pixels:
    """Overlapping shapes of many sizes with soft shading on a textured background, like dead leaves."""
    ground = Image.fromarray(draw_clouds(random, side))
    textures = [cloud(random, side, 1.2)[..., None] for _ in range(4)]
    for number in range(60):
        size = side * 0.03 / random.uniform(0.1, 1)
        left, top = random.uniform(-size, side, 2)
        mask = Image.new("L", ground.size)
        shape = ImageDraw.Draw(mask)
        box = (left, top, left + size, top + size * random.uniform(0.4, 1.6))
        (shape.ellipse if random.random() < 0.6 else shape.rectangle)(box, fill=255)
        mask = mask.rotate(random.uniform(0, 90)).filter(ImageFilter.GaussianBlur(random.uniform(0, 2)))
        texture = random.uniform(20, 235, 3) + random.uniform(2, 14) * textures[number % 4]
        ground.paste(Image.fromarray(to_pixels(texture)), mask=mask)
    return np.asarray(ground)


def draw_page(random: np.random.Generator, side: int) -> Pixels:
    """Lines of text."""
    size = int(random.integers(9, 22))
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
    page = Image.new("RGB", (side, side), tuple(int(level) for level in random.integers(215, 256, 3)))
    pen = ImageDraw.Draw(page)
    spacing = size * random.uniform(1.15, 1.6)
    for line in range(int(side / spacing)):
        text = " ".join(random.choice(WORDS, 30))
        pen.text((int(random.integers(4, 12)), line * spacing), text, fill=(30, 30, 40), font=font)
    return np.asarray(page)


def draw_bricks(random: np.random.Generator, side: int) -> Pixels:
    """A wall seen straight on: joints at a regular distance, every brick in another shade."""
    rows, columns = np.mgrid[:side, :side].astype(np.float64)
    height = random.uniform(9, 34)
    width = height * random.uniform(1.8, 3)
    course = np.floor(rows / height)
    across = columns + width / 2 * (course % 2)
    shades = random.normal(120, 14, (256, 256))
    wall = shades[course.astype(int) % 256, np.floor(across / width).astype(int) % 256]
    joint = (rows % height < 0.12 * height) | (across % width < 0.12 * height)
    wall = np.where(joint, 190, wall) + 8 * cloud(random, side, 0.8)
    return to_pixels(ndimage.gaussian_filter(wall, 0.7)[..., None] * np.array([1.1, 0.85, 0.7]))


def draw_stripes(random: np.random.Generator, side: int) -> Pixels:
    """Blinds or a fence: slats at a regular distance, slightly rotated, in uneven light."""
    rows, columns = np.mgrid[:side, :side].astype(np.float64)
    angle, period = random.choice([0, np.pi / 2]) + random.normal(0, 0.02), random.uniform(7, 40)
    phase = (np.cos(angle) * rows + np.sin(angle) * columns) / period % 1
    light = 110 + 30 * cloud(random, side, 1.3)
    return to_pixels(light + 60 * ndimage.gaussian_filter((phase < 0.7) * 1.0, 0.8))


def draw_windows(random: np.random.Generator, side: int) -> Pixels:
    """A facade with windows in rows and columns."""
    rows, columns = np.mgrid[:side, :side].astype(np.float64)
    down, across = random.uniform(14, 50, 2)
    pane = (rows % down < 0.6 * down) & (columns % across < 0.55 * across)
    lit = random.uniform(40, 120, (256, 256))[(rows // down).astype(int), (columns // across).astype(int)]
    return to_pixels(np.where(pane, lit, 170) + 10 * cloud(random, side, 1.1))


def draw_halftone(random: np.random.Generator, side: int) -> Pixels:
    """A halftone print: dots in a rotated screen, whose sizes follow a picture."""
    rows, columns = np.mgrid[:side, :side].astype(np.float64)
    angle, period = random.uniform(0.1, 0.7), random.uniform(4, 9)
    turned = np.cos(angle) * rows + np.sin(angle) * columns, np.cos(angle) * columns - np.sin(angle) * rows
    screen = np.cos(2 * np.pi * turned[0] / period) + np.cos(2 * np.pi * turned[1] / period)
    return to_pixels(ndimage.gaussian_filter(np.where(screen > 0.7 * cloud(random, side, 1.3), 225.0, 45.0), 0.6))


#: How each drawn kind is drawn, and whether it counts as natural.
KINDS: dict[str, tuple[bool, Callable[[np.random.Generator, int], Pixels]]] = {
    "clouds": (True, draw_clouds),
    "gradient": (True, draw_gradient),
    "composition": (True, draw_composition),
    "page": (False, draw_page),
    "bricks": (False, draw_bricks),
    "stripes": (False, draw_stripes),
    "windows": (False, draw_windows),
    "halftone": (False, draw_halftone),
}


def jpeg(image: Pixels, quality: int) -> Pixels:
    """Compress as JPEG of that quality, and decode again."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def noisy(image: Pixels, deviation: float) -> Pixels:
    """Add gaussian noise of that many levels."""
    return to_pixels(image + np.random.default_rng(7).normal(0, deviation, image.shape))


def filtered(image: Pixels, change: Any) -> Pixels:
    """Apply one of Pillow's filters."""
    return np.asarray(Image.fromarray(image).filter(change))


#: Changes that do not add a grid.
CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "none": lambda image: image,
    "blur 0.7": lambda image: filtered(image, ImageFilter.GaussianBlur(0.7)),
    "blur 2": lambda image: filtered(image, ImageFilter.GaussianBlur(2)),
    "noise 1": lambda image: noisy(image, 1),
    "noise 4": lambda image: noisy(image, 4),
    "noise 16": lambda image: noisy(image, 16),
    "shift 1": lambda image: np.roll(image, (1, 1), (0, 1)),
    "shift 3": lambda image: np.roll(image, (3, -2), (0, 1)),
    "JPEG 95": lambda image: jpeg(image, 95),
    "JPEG 80": lambda image: jpeg(image, 80),
    "JPEG 65": lambda image: jpeg(image, 65),
    "JPEG 50": lambda image: jpeg(image, 50),
    "sharpen": lambda image: filtered(image, ImageFilter.UnsharpMask(2, 150, 0)),
    "contrast 0.8": lambda image: to_pixels(128 + 0.8 * (image - 128.0)),
    "contrast 1.2": lambda image: to_pixels(128 + 1.2 * (image - 128.0)),
}


def pattern(shape: str, period: int, side: int) -> Levels:
    """A pattern between -1 and 1 of shape (side, side), or (side, side, 3) where it is coloured, of mean 0 or nearly.

    Args:
        shape: one of :data:`PATTERNS`.
        period: in pixels.
        side: height and width in pixels.
    """
    rows, columns = np.mgrid[:side, :side]
    if shape == "lines":
        plain = np.where((rows % period == 0) | (columns % period == 0), 1.0, -2.0 / period)
    elif shape == "checkerboard":
        plain = np.where((2 * rows // period + 2 * columns // period) % 2 == 0, 1.0, -1.0)
    elif shape == "dots":
        plain = np.where((rows % period < period // 4) & (columns % period < period // 4), 1.0, -1.0 / 16)
    else:
        plain = np.cos(2 * np.pi * rows / period) * np.cos(2 * np.pi * columns / period)
    if shape == "sinusoid, one channel":
        plain = plain[..., None] * np.eye(3)[period // 8 % 3]
    if shape == "sinusoid, half the image":
        plain = plain * (columns > side / 2)
    return np.asarray(plain, dtype=np.float64)


PATTERNS = ("lines", "checkerboard", "dots", "sinusoid", "sinusoid, one channel", "sinusoid, half the image")
