"""Rotary position embedding over three axes: frame, row and column of an image token, one position for a text token.

The rotations are computed for each forward pass, in float32 and on the device of the input. That takes a thousandth of
the pass, and since the model does not store them, casting, moving, copying or the meta device cannot damage them.
"""

from __future__ import annotations

import torch

#: Base of the frequencies; fixed in upstream's code.
THETA = 10000.0


def rotations(
    grid: tuple[int, int], text_length: int, axes: tuple[int, ...], device: torch.device | None = None
) -> torch.Tensor:
    """Compute the rotation of each pair of channels of each token: image tokens row by row, then text tokens.

    Args:
        grid: rows and columns of image tokens.
        text_length: text tokens.
        axes: channels for frame, row and column; each is even.
        device: of the result.

    Returns:
        Cosine and sine, float32 ``[tokens, sum(axes) / 2, 2]``.
    """
    angles = rotation_angles(grid, text_length, axes, device)
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def rotation_angles(
    grid: tuple[int, int], text_length: int, axes: tuple[int, ...], device: torch.device | None = None
) -> torch.Tensor:
    """Compute the angles of ``rotations`` in radians, float32 ``[tokens, sum(axes) / 2]``.

    Rows and columns are counted from the middle, text tokens from the end of the longer side; the frame is always 0.
    """
    height, width = grid
    frequencies = [
        1.0 / THETA ** (torch.arange(0, channels, 2, dtype=torch.float32, device=device) / channels)
        for channels in axes
    ]
    frame = torch.zeros(height, width, len(frequencies[0]), dtype=torch.float32, device=device)
    rows = torch.outer(_centred(height, device), frequencies[1])[:, None].expand(height, width, -1)
    columns = torch.outer(_centred(width, device), frequencies[2])[None].expand(height, width, -1)
    image = torch.cat((frame, rows, columns), dim=-1).flatten(0, 1)
    positions = torch.arange(text_length, dtype=torch.float32, device=device) + max(height // 2, width // 2)
    return torch.cat((image, torch.outer(positions, torch.cat(frequencies))))


def _centred(length: int, device: torch.device | None) -> torch.Tensor:
    return torch.arange(length, dtype=torch.float32, device=device) - (length - length // 2)


def rotate(states: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of neighbouring channels, in float32.

    Args:
        states: ``[batch, tokens, heads, channels]``.
        rotary: from ``rotations``.

    Returns:
        As ``states``, in its dtype.
    """
    pairs = states.float().unflatten(-1, (-1, 2))
    rotary = rotary[:, None]
    if torch.compiler.is_compiling():
        # The compiler does not support complex numbers, and fuses this into one pass.
        first, second = pairs.unbind(-1)
        cosine, sine = rotary.unbind(-1)
        turned = torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
    else:
        # In eager mode, one complex product is three to ten times as fast as four real ones.
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotary))
    return turned.flatten(-2).to(states.dtype)
