"""Compare two images pixel by pixel."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

#: Largest level of 8 bits.
PEAK = 255
#: Width of the gaussian window in pixels, as in Wang et al., "Image quality assessment: from error visibility to
#: structural similarity", IEEE Transactions on Image Processing 13 (2004).
SSIM_SIGMA = 1.5


def pixel_methods() -> dict[str, str]:
    """Return the exact definition of each figure."""
    library = f"scikit-image {version('scikit-image')}"
    return {
        "psnr_db": f"10 log10({PEAK}^2 / mean squared error over all pixels and channels), RGB of 8 bits; null for "
        f"identical images, whose PSNR is infinite; {library}",
        "ssim": f"mean SSIM of Wang et al. 2004: gaussian weights, sigma {SSIM_SIGMA} (window 11x11), K1 0.01, "
        f"K2 0.03, population covariance, data range {PEAK}; mean over the channels of RGB; {library}",
    }


def psnr_db(original: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> float | None:
    """Compute the peak signal-to-noise ratio in decibels.

    Args:
        original: levels of shape (height, width, 3).
        candidate: of the same shape.

    Returns:
        The ratio for a peak of 255; None for identical images, whose ratio is infinite.

    Raises:
        ValueError: the shapes differ.
    """
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(original, candidate):
        return None
    return float(peak_signal_noise_ratio(original, candidate, data_range=PEAK))


def ssim(original: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> float:
    """Compute the structural similarity of Wang et al. (2004): the mean over the channels, at most 1.

    Args:
        original: levels of shape (height, width, 3).
        candidate: of the same shape.

    Raises:
        ValueError: the shapes differ, or a side is below 11 pixels.
    """
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            original,
            candidate,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
            data_range=PEAK,
            channel_axis=-1,
        )
    )
