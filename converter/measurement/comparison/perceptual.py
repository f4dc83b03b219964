"""LPIPS, a distance computed by a network that was trained on human judgements; it must be installed separately."""

from __future__ import annotations

import importlib
import io
import pickle
import socket
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import first_line, printable
from converter.libraries import loading_errors

#: The network of most published comparisons; the package's own default.
BACKBONE = "alex"
#: Time limit in seconds for answers while the weights of the network are downloaded.
_NETWORK_SECONDS = 10.0
#: Errors of loading if a package or a file of weights is missing, broken or of another network.
_LOADING_ERRORS = loading_errors(EOFError, pickle.UnpicklingError, zipfile.BadZipFile)


class NotMeasured(Exception):
    """A figure cannot be measured on this machine; the message is the reason, in one line."""


class Lpips:
    """The network, loaded once.

    Raises:
        NotMeasured: the package or its weights are not available.
    """

    def __init__(self) -> None:
        try:
            library: Any = importlib.import_module("lpips")
            self.version = version("lpips")
        except ImportError as error:
            reason = f"the package {error.name or 'lpips'} is not installed; the extra lpips installs it"
            raise NotMeasured(printable(reason)) from error
        except _LOADING_ERRORS as error:
            raise NotMeasured(f"lpips cannot be imported: {first_line(error)}") from error
        try:
            with _quiet_loading():
                self._network = library.LPIPS(net=BACKBONE, verbose=False).eval()
        except _LOADING_ERRORS as error:
            raise NotMeasured(f"no weights of {BACKBONE} for lpips: {first_line(error)}") from error

    def distance(self, original: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> float:
        """Compute the distance of two images; identical ones have 0.

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
            raise NotMeasured(first_line(error)) from error

    def method(self) -> str:
        """Return the exact definition of the figure."""
        return f"LPIPS 0.1, AlexNet, RGB scaled to [-1, 1], whole image; 0 for identical images; lpips {self.version}"


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Limit the time and the output of downloads, and hide torchvision's warnings about how lpips calls it."""
    time_limit = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_SECONDS)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        socket.setdefaulttimeout(time_limit)
