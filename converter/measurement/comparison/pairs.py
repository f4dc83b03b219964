"""Which images belong together: the same prompt and seed, drawn by the original and by the quantized model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from converter.console import Reporter
from converter.errors import MissingInput, UsageError, printable, reason_of
from converter.measurement.comparison.images import FORMATS, ImageHead, read_head

#: Ends of a name that say who drew the image.
_ROLES = re.compile(r"-(original|quantized|baseline)$")
#: ``ID-SEED``; the seed is the last part, if that is digits. No seed has more than 20.
_ID_AND_SEED = re.compile(r"(?P<id>.+)-(?P<seed>[0-9]{1,20})")
#: Ends of names of images that are not compared, but that somebody may have meant.
_OTHER_IMAGES = (".avif", ".bmp", ".gif", ".heic", ".jpeg", ".jpg", ".jxl", ".tif", ".tiff")
#: Settings that all images of one prompt must share; seeds are looked at apart, as a baseline has another.
_SHARED_SETTINGS = ("prompt", "steps", "guidance", "date")
#: Pixels of SSIM's window: 3.5 sigma of 1.5 to each side, as scikit-image cuts the gaussian.
SMALLEST_SIDE = 11
#: Names of files in one message.
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class ImageName:
    """What the name of an image says."""

    key: str
    """The name without the suffix and without who drew it."""
    id: str
    """The key without the seed."""
    seed: int | None


@dataclass(frozen=True)
class ImageFile:
    """An image, and what its name and its head say."""

    path: Path
    name: ImageName
    head: ImageHead

    def whole(self, setting: str) -> int | None:
        """A setting that is a whole number and at least 0; None where there is none."""
        value = (self.head.settings or {}).get(setting)
        return value if type(value) is int and 0 <= value < 1 << 64 else None

    def __str__(self) -> str:
        return printable(f"{self.path.parent.name}/{self.path.name}")


@dataclass(frozen=True)
class ImagePair:
    """An image of the original, that of the quantized model, and one that the original drew with another seed."""

    key: str
    id: str
    seed: int | None
    """None where neither the name nor the file tells."""
    steps: int | None
    width: int
    """In pixels."""
    height: int
    original: Path
    quantized: Path
    baseline: Path | None = None
    baseline_seed: int | None = None


def find_pairs(original: Path, quantized: Path, baseline: Path | None, *, reporter: Reporter) -> tuple[ImagePair, ...]:
    """Pair the images of two or three folders by their names; only their heads are read.

    Args:
        original: folder of the original's images.
        quantized: folder of the quantized model's.
        baseline: folder of the original's with another seed; None if there is none.
        note: says what people want to know.

    Returns:
        Pairs in the order of their keys. Each has the first baseline of the same id with another seed.

    Raises:
        MissingInput: a folder or a file is not there or cannot be read, or a folder has no images.
        UsageError: images do not go together, or cannot be compared.
    """
    folders = [folder for folder in (original, quantized, baseline) if folder is not None]
    listed = [_list_images(folder, reporter) for folder in folders]
    for number, folder in enumerate(folders[1:], 1):
        if any(folder.samefile(other) for other in folders[:number]):
            raise UsageError(f"{folder}: is given twice", "Each folder holds the images of one model.")
    _refuse_unpaired(folders[:2], listed[0], listed[1])
    if baseline is not None:
        shared = _ids(listed[0]) & _ids(listed[2])
        both = (*listed[0].values(), *listed[2].values())
        _refuse_lonely((original, baseline), [image for image in both if image.name.id not in shared])
    return tuple(
        _check_pair(image, other, _find_baseline(image, other, listed[2]) if baseline is not None else None)
        for image, other in ((image, listed[1][key]) for key, image in listed[0].items())
    )


def parse_name(path: Path) -> ImageName:
    """Read key, id and seed off a name: ``P01-301-original.png`` is ``P01-301``, of id ``P01`` and seed 301."""
    key = _ROLES.sub("", path.stem)
    found = _ID_AND_SEED.fullmatch(key)
    return ImageName(key, found["id"], int(found["seed"])) if found else ImageName(key, key, None)


def _read_image(path: Path) -> ImageFile:
    image = ImageFile(path, parse_name(path), read_head(path))
    seed = image.whole("seed")
    if seed is None or seed == image.name.seed:
        return image
    # The file knows its seed: digits that end its name are the id's own, as in door-2.
    return replace(image, name=ImageName(image.name.key, image.name.key, seed))


def _list_images(folder: Path, reporter: Reporter) -> dict[str, ImageFile]:
    where = printable(str(folder))
    try:
        entries = sorted(folder.iterdir())
    except NotADirectoryError as error:
        raise MissingInput(where, "is no folder") from error
    except OSError as error:
        raise MissingInput(where, f"cannot be read: {reason_of(error)}", "Check the path.") from error
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
            raise UsageError(f"{where}: {_names([images[key].path.name, entry.name])} are both {key}")
        images[key] = _read_image(entry)
    if others:
        reporter.note(f"{where}: not compared, as neither PNG nor WebP: {_names(others)}")
    if not images:
        raise MissingInput(where, "holds no images", "Images are PNG or lossless WebP, named ID-SEED.png.")
    return dict(sorted(images.items()))


def _refuse_unpaired(
    folders: Sequence[Path], original: Mapping[str, ImageFile], quantized: Mapping[str, ImageFile]
) -> None:
    first, second = (
        [images[key] for key in images if key not in others]
        for images, others in ((original, quantized), (quantized, original))
    )
    for image in first:
        for other in second:
            if image.name.id == other.name.id:
                raise UsageError(
                    f"{image} and {other}: the same id with other seeds",
                    "Drift shows at the same seed alone; images of another seed are the --baseline.",
                )
    _refuse_lonely(folders, [*first, *second])


def _refuse_lonely(folders: Sequence[Path], lonely: Sequence[ImageFile]) -> None:
    if lonely:
        where = " and ".join(printable(str(folder)) for folder in folders)
        raise UsageError(
            f"{where}: only one of them has {_names(map(str, lonely))}",
            "Every image needs its counterpart, of the same name.",
        )


def _find_baseline(image: ImageFile, quantized: ImageFile, baselines: Mapping[str, ImageFile]) -> ImageFile:
    same_id = [other for other in baselines.values() if other.name.id == image.name.id]
    for other in same_id:
        if other.name.seed is None or other.name.seed not in (image.name.seed, quantized.name.seed):
            return other
    raise UsageError(f"{same_id[0]}: has the seed of {image}", "A baseline is drawn with another seed.")


def _check_pair(original: ImageFile, quantized: ImageFile, baseline: ImageFile | None) -> ImagePair:
    head = original.head
    if min(head.width, head.height) < SMALLEST_SIDE:
        raise UsageError(f"{original}: is smaller than {SMALLEST_SIDE} pixels, the window of SSIM")
    _refuse_differences(original, quantized)
    seeds = original.name.seed, quantized.name.seed
    if None not in seeds and seeds[0] != seeds[1]:
        raise UsageError(f"{original} and {quantized}: were drawn with another seed: {seeds[0]} and {seeds[1]}")
    if baseline is not None:
        _refuse_differences(original, baseline)
    steps = original.whole("steps")
    return ImagePair(
        key=original.name.key,
        id=original.name.id,
        seed=seeds[0] if seeds[0] is not None else seeds[1],
        steps=steps if steps is not None else quantized.whole("steps"),
        width=head.width,
        height=head.height,
        original=original.path,
        quantized=quantized.path,
        baseline=None if baseline is None else baseline.path,
        baseline_seed=None if baseline is None else baseline.name.seed,
    )


def _refuse_differences(first: ImageFile, second: ImageFile) -> None:
    sizes = [f"{image.head.width}x{image.head.height}" for image in (first, second)]
    if sizes[0] != sizes[1]:
        raise UsageError(f"{first} and {second}: are {sizes[0]} and {sizes[1]} pixels")
    for name in _SHARED_SETTINGS:
        values = [(image.head.settings or {}).get(name) for image in (first, second)]
        if None not in values and values[0] != values[1]:
            shown = " and ".join(printable(str(value), 60) for value in values)
            raise UsageError(f"{first} and {second}: were drawn with another {name}: {shown}", "Draw both alike.")


def _ids(images: Mapping[str, ImageFile]) -> set[str]:
    return {image.name.id for image in images.values()}


def _names(names: Iterable[str]) -> str:
    shown = [printable(name) for name in names]
    more = f" and {len(shown) - _NAMES_SHOWN} more" if len(shown) > _NAMES_SHOWN else ""
    return ", ".join(shown[:_NAMES_SHOWN]) + more
