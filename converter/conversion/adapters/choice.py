"""The adapter that a user names: ``FILE`` or ``FILE=SCALE``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint.weights import WEIGHTS_SUFFIX
from converter.errors import UsageError, printable

#: The largest scale, either sign. Sliders are used up to about 10; a percentage given by mistake is refused above 100.
MAXIMUM_SCALE = 100.0
#: What Python accepts as a float, without spaces, underscores and other alphabets' digits.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
#: An address, which Path would spoil.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_HINT = "Write --lora FILE, or --lora FILE=SCALE with a number such as 0.8."


@dataclass(frozen=True)
class AdapterChoice:
    """An adapter to add to the weights.

    Raises:
        UsageError: the scale has no meaning.
    """

    file: Path
    scale: float = 1.0
    """``lora_scale`` of diffusers' ``fuse_lora``: a factor on top of the adapter's own alpha over rank."""

    def __post_init__(self) -> None:
        where = f"--lora {printable(str(self.file))}: scale {self.scale}"
        if not math.isfinite(self.scale):
            raise UsageError(f"{where} is not a finite number", _HINT)
        if self.scale == 0:
            raise UsageError(f"{where} leaves the weights as they are", "Leave the adapter out.")
        if abs(self.scale) > MAXIMUM_SCALE:
            raise UsageError(f"{where} is beyond {MAXIMUM_SCALE:g}", "Scales are about 1; 80 percent is 0.8.")


def parse_choice(text: str) -> AdapterChoice:
    """Parse ``FILE`` or ``FILE=SCALE``; the name of a file may contain ``=``.

    Raises:
        UsageError: there is no file, it is an address, or the scale is not a number or has no meaning.
    """
    if _ADDRESS.match(text):
        hint = "Download it, with `hf download OWNER/NAME FILE --local-dir DIR`, and name the file."
        raise UsageError(f"--lora {printable(text)}: adapters are read from this machine", hint)
    file, separator, scale = text.rpartition("=")
    if separator and _NUMBER.fullmatch(scale):
        if not file:
            raise UsageError(f"--lora {printable(text)}: names no file", _HINT)
        return AdapterChoice(Path(file), float(scale))
    if separator and file.endswith(WEIGHTS_SUFFIX) and not text.endswith(WEIGHTS_SUFFIX):
        raise UsageError(f"--lora {printable(text)}: {printable(scale) or 'nothing'} is not a number", _HINT)
    if not text:
        raise UsageError("--lora names no file", _HINT)
    return AdapterChoice(Path(text))
