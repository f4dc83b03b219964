"""Images with one module quantized, and how far they are from the original's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.measurement.benchmark.repos import ImageSettings
from converter.measurement.sensitivity.loaded import LoadedOriginal

#: An image as it is saved, and the same before its numbers become whole ones; float64, from 0 to 255.
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


def draw_pairs(loaded: LoadedOriginal, settings: Sequence[ImageSettings]) -> list[Pair]:
    """Draw images, and keep what the autoencoder's decoder returns for each as well."""
    decoded: list[Any] = []
    hook = loaded.pipeline.vae.decoder.register_forward_hook(lambda _, __, output: decoded.append(output))
    try:
        images = [np.asarray(loaded.draw(found), np.float64) for found in settings]
    finally:
        hook.remove()
    # [1, 3, height, width], from -1 to 1.
    unrounded = [np.clip(found[0].permute(1, 2, 0).double().numpy() * 127.5 + 127.5, 0, 255) for found in decoded]
    return list(zip(images, unrounded, strict=True))


def squared_errors(found: Sequence[Pair], originals: Sequence[Pair]) -> NDArray[np.float64]:
    """The mean squared error of each image by the variance of the original's pixels: ``[prompts, 2]``.

    The first column is of images as they are saved, the second of the same before rounding.
    """
    return np.array(
        [
            [np.square(own - first).mean() / first.var() for own, first in zip(pair, original, strict=True)]
            for pair, original in zip(found, originals, strict=True)
        ]
    )
