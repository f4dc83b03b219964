"""Find pairs of images: the same prompt and seed, from the original and from the quantized model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from converter.console import Reporter
from converter.errors import MissingInput, UsageError, unreadable
from converter.measurement.comparison.images import FORMATS, ImageHead, read_head

#: Suffixes of a name that say which model made the image.
_ROLES = re.compile(r"-(original|quantized|baseline)$")
#: ``ID-SEED``; the seed is the last part, if it consists of at most 20 digits.
_ID_AND_SEED = re.compile(r"(?P<id>.+)-(?P<seed>[0-9]{1,20})")
#: Suffixes of images that are not compared, which the user is told.
_OTHER_IMAGES = (".avif", ".bmp", ".gif", ".heic", ".jpeg", ".jpg", ".jxl", ".tif", ".tiff")
#: Settings that all images of one prompt must share. Seeds are compared separately, since a baseline has another one.
_SHARED_SETTINGS = ("pipeline", "prompt", "steps", "guidance", "max_sequence_length", "date")
#: Pixels of SSIM's window: 3.5 sigma of 1.5 to each side, where scikit-image cuts the gaussian.
SMALLEST_SIDE = 11
#: Maximum number of file names in one message.
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class ImageName:
    """The parts of the name of an image."""

    key: str
    """The name without the suffix and the model."""
    id: str
    """The key without the seed."""
    seed: int | None


@dataclass(frozen=True)
class ImageFile:
    """An image file, its name and its head."""

    path: Path
    name: ImageName
    head: ImageHead

    def whole(self, setting: str) -> int | None:
        """Return a setting that is an integer of at least 0; None if it is missing or something else."""
        value = (self.head.settings or {}).get(setting)
        return value if type(value) is int and 0 <= value < 1 << 64 else None

    def __str__(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"


@dataclass(frozen=True)
class ImagePair:
    """An image of the original, that of the quantized model, and one of the original with another seed."""

    key: str
    id: str
    seed: int | None
    """None if neither the name nor the file has it."""
    steps: int | None
    width: int
    """Height in pixels."""
    height: int
    original: Path
    quantized: Path
    baseline: Path | None = None
    baseline_seed: int | None = None


def find_pairs(original: Path, quantized: Path, baseline: Path | None, *, reporter: Reporter) -> tuple[ImagePair, ...]:
    """Pair the images of two or three folders by their names; read only their heads.

    Args:
        original: folder of the original's images.
        quantized: folder of the quantized model's.
        baseline: folder of the original's with another seed, or None.
        reporter: shows notes.

    Returns:
        Pairs in the order of their keys. Each has the first baseline of the same id with another seed.

    Raises:
        MissingInput: a folder or a file cannot be read, or a folder has no images.
        UsageError: images have no counterpart, or cannot be compared.
    """
    folders = [folder for folder in (original, quantized, baseline) if folder is not None]
    images, others, *baselines = [_list_images(folder, reporter) for folder in folders]
    for number, folder in enumerate(folders[1:], 1):
        if any(folder.samefile(other) for other in folders[:number]):
            raise UsageError(f"{folder}: is given twice", "Each folder contains the images of one model.")
    _refuse_unpaired(original, quantized, images, others)
    if baseline is not None:
        both = [*images.values(), *baselines[0].values()]
        shared = {image.name.id for image in images.values()} & {image.name.id for image in baselines[0].values()}
        _refuse_lonely(original, baseline, [image for image in both if image.name.id not in shared], "id")
    return tuple(_check_pair(image, others[key], *baselines) for key, image in images.items())


def parse_name(path: Path) -> ImageName:
    """Parse key, id and seed from a name: ``P01-301-original.png`` is ``P01-301``, of id ``P01`` and seed 301."""
    key = _ROLES.sub("", path.stem)
    found = _ID_AND_SEED.fullmatch(key)
    return ImageName(key, found["id"], int(found["seed"])) if found else ImageName(key, key, None)


def _read_image(path: Path) -> ImageFile:
    image = ImageFile(path, parse_name(path), read_head(path))
    seed = image.whole("seed")
    if seed is None or seed == image.name.seed:
        return image
    # The seed in the file counts; digits at the end of the name are then part of the id, as in door-2.
    return replace(image, name=ImageName(image.name.key, image.name.key, seed))


def _list_images(folder: Path, reporter: Reporter) -> dict[str, ImageFile]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error
    images: dict[str, ImageFile] = {}
    others = []
    for entry in entries:
        if entry.name.startswith(".") or entry.is_dir():
            continue
        if entry.suffix.lower() in _OTHER_IMAGES:
            others.append(entry.name)
        if entry.suffix.lower() not in FORMATS:
            continue
        key = parse_name(entry).key
        if key in images:
            names = _names([images[key].path.name, entry.name])
            raise UsageError(f"{folder}: {names} are two images of {key}", "Remove one of them.")
        images[key] = _read_image(entry)
    if others:
        reporter.note(f"{folder}: not compared, neither PNG nor WebP: {_names(others)}")
    if not images:
        raise MissingInput(folder, "contains no images", "Images are PNG or lossless WebP, named ID-SEED.png.")
    return dict(sorted(images.items()))


def _refuse_unpaired(
    folder: Path, other_folder: Path, images: Mapping[str, ImageFile], others: Mapping[str, ImageFile]
) -> None:
    lonely = [images[key] for key in images if key not in others]
    lonely_others = [others[key] for key in others if key not in images]
    for image, other in product(lonely, lonely_others):
        if image.name.id == other.name.id:
            raise UsageError(
                f"{image} and {other}: the same id with different seeds",
                "Drift is measured at the same seed; give images of another seed as --baseline.",
            )
    _refuse_lonely(folder, other_folder, [*lonely, *lonely_others], "id and seed")


def _refuse_lonely(folder: Path, other: Path, lonely: Sequence[ImageFile], same: str) -> None:
    if lonely:
        raise UsageError(
            f"{folder} and {other}: only one of them has {_names(map(str, lonely))}",
            f"Every image needs one with the same {same} in the other folder.",
        )


def _find_baseline(image: ImageFile, quantized: ImageFile, baselines: Mapping[str, ImageFile]) -> ImageFile:
    same_id = [other for other in baselines.values() if other.name.id == image.name.id]
    for other in same_id:
        if other.name.seed is None or other.name.seed not in (image.name.seed, quantized.name.seed):
            return other
    raise UsageError(f"{same_id[0]}: has the same seed as {image}", "A baseline needs another seed.")


def _check_pair(
    original: ImageFile, quantized: ImageFile, baselines: Mapping[str, ImageFile] | None = None
) -> ImagePair:
    head = original.head
    if min(head.width, head.height) < SMALLEST_SIDE:
        raise UsageError(f"{original}: is smaller than {SMALLEST_SIDE} pixels, the window of SSIM")
    _refuse_differences(original, quantized)
    seeds = [image.name.seed for image in (original, quantized) if image.name.seed is not None]
    if len(set(seeds)) > 1:
        raise UsageError(f"{original} and {quantized}: differ in seed: {seeds[0]} and {seeds[1]}")
    baseline = None if baselines is None else _find_baseline(original, quantized, baselines)
    if baseline is not None:
        _refuse_differences(original, baseline)
    steps = original.whole("steps")
    return ImagePair(
        key=original.name.key,
        id=original.name.id,
        seed=seeds[0] if seeds else None,
        steps=steps if steps is not None else quantized.whole("steps"),
        width=head.width,
        height=head.height,
        original=original.path,
        quantized=quantized.path,
        baseline=baseline.path if baseline else None,
        baseline_seed=baseline.name.seed if baseline else None,
    )


def _refuse_differences(first: ImageFile, second: ImageFile) -> None:
    sizes = [f"{image.head.width}x{image.head.height}" for image in (first, second)]
    if sizes[0] != sizes[1]:
        raise UsageError(f"{first} and {second}: are {sizes[0]} and {sizes[1]} pixels")
    for name in _SHARED_SETTINGS:
        values = [(image.head.settings or {}).get(name) for image in (first, second)]
        if None not in values and values[0] != values[1]:
            shown = " and ".join(f"{value!s:.60}" for value in values)
            raise UsageError(f"{first} and {second}: differ in {name}: {shown}", "Use the same settings.")


def _names(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _NAMES_SHOWN} more" if len(shown) > _NAMES_SHOWN else ""
    return ", ".join(shown[:_NAMES_SHOWN]) + more
