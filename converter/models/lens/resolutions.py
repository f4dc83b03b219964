"""The sizes of images that Lens was trained for, from upstream's table (microsoft/Lens, commit 5bf0f0c)."""

from __future__ import annotations

#: Height and width in pixels, by base resolution and aspect ratio; the ratio is width to height. The table is
#: upstream's own: rounding does not give it back (2080 and 1040 at 1440).
RESOLUTIONS: dict[int, dict[str, tuple[int, int]]] = {
    1024: {
        "1:2": (1472, 736),
        "9:16": (1376, 768),
        "2:3": (1248, 832),
        "3:4": (1152, 864),
        "1:1": (1024, 1024),
        "4:3": (864, 1152),
        "3:2": (832, 1248),
        "16:9": (768, 1376),
        "2:1": (736, 1472),
    },
    1440: {
        "1:2": (2080, 1040),
        "9:16": (1936, 1088),
        "2:3": (1760, 1168),
        "3:4": (1616, 1216),
        "1:1": (1440, 1440),
        "4:3": (1216, 1616),
        "3:2": (1168, 1760),
        "16:9": (1088, 1936),
        "2:1": (1040, 2080),
    },
}
ASPECT_RATIOS = tuple(RESOLUTIONS[1024])
#: Pixels per side of one token: the autoencoder shrinks the image eight times, the patches twice.
PIXELS_PER_TOKEN = 16
#: Pixels per side where the caller of the pipeline names none; upstream's default.
DEFAULT_SIDE = 1024


def resolution(base_resolution: int, aspect_ratio: str) -> tuple[int, int]:
    """Height and width in pixels.

    Args:
        base_resolution: 1024 or 1440.
        aspect_ratio: width to height, such as ``16:9``.

    Raises:
        ValueError: the table has no such entry.
    """
    if base_resolution not in RESOLUTIONS:
        raise ValueError(f"base_resolution {base_resolution} is not one of {', '.join(map(str, RESOLUTIONS))}")
    if aspect_ratio not in RESOLUTIONS[base_resolution]:
        raise ValueError(f"aspect_ratio {aspect_ratio!r} is not one of {', '.join(ASPECT_RATIOS)}")
    return RESOLUTIONS[base_resolution][aspect_ratio]


def choose_size(
    height: int | None, width: int | None, base_resolution: int | None, aspect_ratio: str | None
) -> tuple[int, int]:
    """Height and width in pixels, from what the caller named.

    Args:
        height: in pixels, a multiple of 16; without it or ``width``, both are 1024.
        width: likewise.
        base_resolution: together with ``aspect_ratio`` it decides the size, alone it does nothing.
        aspect_ratio: width to height.

    Raises:
        ValueError: the table has no such entry, or a side is not a multiple of 16.
    """
    if base_resolution is not None and aspect_ratio is not None:
        return resolution(base_resolution, aspect_ratio)
    if height is None or width is None:
        return DEFAULT_SIDE, DEFAULT_SIDE
    for name, side in (("height", height), ("width", width)):
        if side < PIXELS_PER_TOKEN or side % PIXELS_PER_TOKEN:
            raise ValueError(f"{name} {side} is not a multiple of {PIXELS_PER_TOKEN} pixels")
    return height, width
