"""Look at the image's hidden states after each block, whether blocks are compiled or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: Tokens of the image that are shown, evenly spaced.
SHOWN_TOKENS = 64


class _Watched(torch.nn.Module):
    """A block whose result is shown. A hook on the block itself would become a part of what is compiled."""

    def __init__(self, block: torch.nn.Module, show: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self._block = block
        self._show = show

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Run the block."""
        text, image = self._block(*arguments, **options)
        tokens = torch.linspace(0, image.shape[1] - 1, min(SHOWN_TOKENS, image.shape[1])).round().long()
        self._show(image.detach()[:, tokens.to(image.device)].to("cpu"))
        return text, image


@contextmanager
def watching_blocks(transformer: Any, show: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Show the image's hidden states after each block, in every call of a transformer inside the block.

    Args:
        transformer: a ``LensTransformer2DModel``.
        show: gets ``[batch, tokens, width]`` on the CPU, in the dtype of the model.
    """
    blocks = transformer.transformer_blocks
    transformer.transformer_blocks = torch.nn.ModuleList(_Watched(block, show) for block in blocks)
    try:
        yield
    finally:
        transformer.transformer_blocks = blocks
