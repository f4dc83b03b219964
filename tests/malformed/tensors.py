"""Tensors that are not those of the model, and numbers that are not finite or too large."""

from __future__ import annotations

import struct
from collections.abc import Callable

from tests.malformed.site import (
    HOSTILE_TEXT,
    KEPT,
    LENS_FILE,
    QUANTIZED,
    Invocation,
    Site,
    Stored,
    add_case,
    case,
    edit_lens,
    plant,
)


def _add_tensor_case(name: str, edit: Callable[[dict[str, Stored]], object], *message: str) -> None:
    def build(site: Site) -> None:
        edit_lens(site, edit)

    # What ends with a dot is said in the hint.
    said, hint = ([text for text in message if text.endswith(".") is ends] for ends in (False, True))
    add_case(f"tensors-{name}", build, "UnsupportedCheckpoint", "source", *said, hint=tuple(hint))


def _set_dtype(tensor: str, dtype: str, size: float) -> Callable[[dict[str, Stored]], object]:
    """Replace a tensor by one of the same shape and another dtype, whose numbers take so many bytes."""

    def edit(tensors: dict[str, Stored]) -> None:
        old = tensors[tensor]
        tensors[tensor] = Stored(dtype, old.shape, b"\x38" * int(len(old.data) // 4 * size))

    return edit


def _reshape(shape: list[int], cut: int = 0) -> Callable[[dict[str, Stored]], object]:
    """Give the quantized tensor another shape, and cut off so many bytes."""

    def edit(tensors: dict[str, Stored]) -> None:
        old = tensors[QUANTIZED]
        tensors[QUANTIZED] = Stored(old.dtype, shape, old.data[: len(old.data) - cut])

    return edit


def _rename(tensors: dict[str, Stored]) -> None:
    tensors[HOSTILE_TEXT] = tensors.pop(KEPT)


_EXTRA = Stored("F32", [1], bytes(4))
for _name, _edit, *_message in (
    ("weight-missing", lambda tensors: tensors.pop(QUANTIZED), QUANTIZED, "missing", "Download it again."),
    ("bias-missing", lambda tensors: tensors.pop(KEPT), KEPT, "missing"),
    ("one-too-many", lambda tensors: tensors.update({"extra.weight": _EXTRA}), "extra.weight", "to these weights."),
    ("renamed", _rename, KEPT, "missing; LensTransformer2DModel"),
    ("one-too-many-hostile", lambda tensors: tensors.update({HOSTILE_TEXT: _EXTRA}), "evil\\r\\n\\x1b"),
    ("weight-transposed", _reshape([192, 576]), QUANTIZED, "[192, 576]", "needs [576, 192]", "these weights."),
    ("weight-one-row-short", _reshape([575, 192], cut=192 * 4), QUANTIZED, "has shape [575, 192]"),
    ("weight-flat", _reshape([576 * 192]), QUANTIZED, "has shape"),
    ("bias-a-scalar", lambda tensors: tensors.update({KEPT: Stored("F32", [], bytes(4))}), KEPT, "has shape []"),
    ("weight-integers", _set_dtype(QUANTIZED, "I32", 4), QUANTIZED, "is I32", "unquantized checkpoint."),
    ("weight-complex", _set_dtype(QUANTIZED, "C64", 8), QUANTIZED, "is C64"),
    ("bias-booleans", _set_dtype(KEPT, "BOOL", 1), KEPT, "is BOOL"),
):
    _add_tensor_case(_name, _edit, *_message)
for _dtype in ("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"):
    # Eight bits are a quantized weight without the scales that would say what it means.
    _how = "already quantized" if _dtype in ("U8", "I8", "F8_E4M3", "F8_E5M2") else f"is {_dtype}"
    _add_tensor_case(f"weight-{_dtype}".lower(), _set_dtype(QUANTIZED, _dtype, 1), QUANTIZED, _how)
    _add_tensor_case(f"bias-{_dtype}".lower(), _set_dtype(KEPT, _dtype, 1), KEPT, f"is {_dtype}, which")
_add_tensor_case("weight-f4", _set_dtype(QUANTIZED, "F4", 0.5), QUANTIZED, "already quantized")


#: The smallest number of float32 that bfloat16 rounds to infinity.
TOO_LARGE = struct.unpack("<f", b"\x00\x80\x7f\x7f")[0]


def _add_number_case(name: str, tensor: str, number: float, dtype: str = "F32") -> None:
    def edit(tensors: dict[str, Stored]) -> None:
        if dtype == "F64":
            tensors[tensor] = Stored("F64", tensors[tensor].shape, bytes(2 * len(tensors[tensor].data)))
        plant(tensors[tensor], number, 77)

    def build(site: Site) -> None:
        edit_lens(site, edit)

    message = f"{LENS_FILE}: tensor {tensor}: contains NaN, infinity or a number that overflows bfloat16 (at least 1 of"
    add_case(f"number-{name}", build, "NonFiniteWeight", message, hint=("--allow-nonfinite",))


for _place, _tensor in (("quantized", QUANTIZED), ("kept", KEPT)):
    _add_number_case(f"nan-{_place}", _tensor, float("nan"))
    _add_number_case(f"infinity-{_place}", _tensor, float("inf"))
    _add_number_case(f"minus-infinity-{_place}", _tensor, float("-inf"))
    _add_number_case(f"overflow-{_place}", _tensor, TOO_LARGE)
    _add_number_case(f"overflow-f64-{_place}", _tensor, 1e300, "F64")


@case("number-nan-and-overwrite", "NonFiniteWeight", LENS_FILE, QUANTIZED)
def _number_nan_and_overwrite(site: Site) -> Invocation:
    # What is there must stay as it is when its replacement fails.
    edit_lens(site, lambda tensors: plant(tensors[QUANTIZED], float("nan"), 3))
    site.copy_lens("work/out")
    return site.convert("--overwrite")
