"""LPIPS, the distance that a network trained on people's judgements sees; for those who have installed it."""

from __future__ import annotations

import importlib
import io
import pickle
import socket
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import printable

#: Network of the published comparisons of images; the package's own default.
BACKBONE = "alex"
#: Seconds without an answer after which a download of the backbone's weights is given up.
_NETWORK_SECONDS = 10.0
#: What loading raises where a package or a file of weights is missing, broken or of another network.
_LOADING_ERRORS = (
    ImportError,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    AttributeError,
    EOFError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


class NotMeasured(Exception):
    """A figure cannot be measured here; the message is the reason, in one line."""


class Lpips:
    """The network, loaded once.

    Raises:
        NotMeasured: the package or its weights are not there.
    """

    def __init__(self) -> None:
        try:
            library: Any = importlib.import_module("lpips")
            self.version = version("lpips")
        except (ImportError, PackageNotFoundError) as error:
            reason = f"the package {printable(error.name or 'lpips')} is not installed; pip install 'lensconv[lpips]'"
            raise NotMeasured(reason) from error
        except _LOADING_ERRORS as error:
            raise NotMeasured(f"lpips cannot be imported: {_first_line(error)}") from error
        try:
            with _short_patience():
                self._network = library.LPIPS(net=BACKBONE, verbose=False).eval()
        except _LOADING_ERRORS as error:
            raise NotMeasured(f"no weights of {BACKBONE} for lpips: {_first_line(error)}") from error

    def distance(self, original: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> float:
        """The distance of two images: 0 for identical ones.

        Args:
            original: levels of shape (height, width, 3).
            candidate: of the same shape.

        Raises:
            NotMeasured: the images are too small for the network.
        """
        import torch

        planes = [
            torch.from_numpy(image).permute(2, 0, 1)[None].to(torch.float32) / 127.5 - 1
            for image in (original, candidate)
        ]
        try:
            with torch.inference_mode():
                return float(self._network(*planes).item())
        except RuntimeError as error:
            raise NotMeasured(_first_line(error)) from error

    def method(self) -> str:
        """What the figure is, exactly."""
        return f"LPIPS 0.1, AlexNet, RGB scaled to [-1, 1], whole image; 0 for identical images; lpips {self.version}"


@contextmanager
def _short_patience() -> Iterator[None]:
    """Let no download wait for ever or draw a bar, and hide torchvision's warnings about how lpips calls it."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_SECONDS)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        socket.setdefaulttimeout(patience)


def _first_line(error: BaseException) -> str:
    return printable((str(error) or type(error).__name__).strip().splitlines()[0])
