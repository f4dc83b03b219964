"""Integers of at most eight bits, which lensconv restores without SDNQ's passes through memory.

SDNQ's own unpacking is asked once for each format where its bytes put their bits, and what is restored of a sample is
compared with what SDNQ's dequantizer restores. So nothing here knows the formats, and other versions of SDNQ are used
as they are.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from converter.conversion.execution.jobs import QuantizeJob
from converter.conversion.kernels.sdnq import quantize_with_sdnq
from converter.conversion.kernels.selfcheck import sample_weights
from converter.conversion.planning.methods import Kind
from converter.conversion.planning.rules import WeightFormat, weight_format
from converter.libraries import load_library
from converter.measurement.sensitivity.sums import RUN, Comparison, IntegerForm
from converter.verification.dequantizing import dequantize

#: Options by which something else is added to the numbers, or done with them.
_OTHER_ARITHMETIC = ("use_svd", "use_hadamard", "use_codebook", "scale_dtype", "zero_point_dtype")
#: Numbers of a group of the sample.
_SAMPLE_GROUP = 64


def integer_form(job: QuantizeJob) -> IntegerForm | None:
    """How the integers of a weight are stored; None if SDNQ has to restore it."""
    options = job.module.options
    name = str(options["weights_dtype"])
    scale = job.parts["scale"].spec
    is_plain = (
        options["layer_class_name"] == "Linear"
        and not any(options.get(option) for option in _OTHER_ARITHMETIC)
        # Every scale belongs to one row.
        and (job.method.kind is Kind.COLUMNS or scale.shape[0] == job.module.shape[0])
        and scale.dtype in ("BF16", "F32")
        and (job.module.shape[1] % RUN == 0)
    )
    return _form(name, scale.dtype) if is_plain else None


@lru_cache
def _form(name: str, scale_dtype: str) -> IntegerForm | None:
    """The form of a format of SDNQ; None if it has none, or restores other numbers than SDNQ."""
    found = weight_format(name)
    if found is None or not found.is_integer or found.bits > 8 or found.storage not in ("I8", "U8"):
        return None
    lowest = 0 if found.is_unsigned else -(1 << (found.bits - 1))
    flip = 0 if found.is_packed or found.is_unsigned else 0x80
    form = IntegerForm(_table(found), flip, lowest, scale_dtype)
    return form if _agrees(name, form) else None


def _table(found: WeightFormat) -> NDArray[np.uint64]:
    """What SDNQ unpacks from each byte of a run alone, for every value of it."""
    if not found.is_packed:
        return np.empty((0, 256), np.uint64)
    packing, name = load_library("sdnq.packed_int"), f"uint{found.bits}"
    values = np.zeros((found.bits, 256, found.bits), np.uint8)
    for position in range(found.bits):
        values[position, :, position] = np.arange(256)
    # SDNQ unpacks only what has the shape that its packing gives it.
    shape = packing.pack_int(torch.zeros(values.size // found.bits * RUN, dtype=torch.uint8), name).shape
    numbers = packing.unpack_int(torch.from_numpy(values).reshape(shape), name, (values.size // found.bits, RUN))
    table: NDArray[np.uint64] = numbers.contiguous().numpy().view(np.uint64)
    return table.reshape(found.bits, 256)


def _agrees(name: str, form: IntegerForm) -> bool:
    """Whether the form restores what SDNQ restores."""
    bits = sample_weights()
    options = {
        "weights_dtype": name,
        "layer_class_name": "Linear",
        "group_size": _SAMPLE_GROUP,
        "dequantize_fp32": form.scale_dtype == "F32",
        "torch_dtype": "bfloat16",
        "use_dynamic_quantization": False,
    }
    result = quantize_with_sdnq(
        bits.reshape(-1).view(np.uint8), "F32", bits.shape, options, from_float32=False, device=torch.device("cpu")
    )
    restored = dequantize(result.dequantizer, result.parts).numpy().reshape(-1)
    comparison = Comparison(bits.shape[1])
    comparison.add_integers(restored, {part: result.bytes_of(part) for part in result.parts}, form)
    return comparison.noise == 0
