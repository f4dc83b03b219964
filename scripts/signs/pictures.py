"""Pictures as tensors."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from scripts.signs.drawing import draw_sign
from scripts.signs.vocabulary import Sign


def picture_batch(signs: Iterable[Sign], device: torch.device) -> torch.Tensor:
    """The pictures of signs in [-1, 1], float32 ``[signs, 3, 128, 128]``."""
    levels = np.stack([np.asarray(draw_sign(sign)) for sign in signs])
    return torch.from_numpy(levels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
