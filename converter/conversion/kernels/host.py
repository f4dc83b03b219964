"""The CPU as the place where weights are quantized: what ``Device`` is elsewhere, without an import of torch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Host:
    """The CPU, which needs no set-up and no copies."""

    name = "cpu"

    @property
    def torch_device(self) -> Any:
        """The device for SDNQ's functions; asking for it imports torch."""
        import torch

        return torch.device("cpu")

    def used(self) -> AbstractContextManager[None]:
        """Compute here while the block runs."""
        return nullcontext()

    def buffer(self, size: int) -> NDArray[np.uint8]:
        """Memory of so many bytes."""
        return np.empty(size, np.uint8)


#: The only one.
HOST = Host()
