"""How the weight of a module is quantized: by lensconv's kernel, or by SDNQ in runs of rows or in one piece, and
whether scales are searched afterwards.

Rows are independent of each other unless something couples them: a factorisation, a codebook of scales, one scale for
the tensor. For independent rows, SDNQ gives the same bytes on a run of rows as on the whole tensor, and memory does not
grow with the tensor; with a transposed result, it grows by that result alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from math import gcd, prod

from converter.checkpoint.layout import TensorSpec
from converter.conversion.planning.plan import Plan, PlannedModule
from converter.conversion.planning.rounding import COUPLES, QUANTIZED_SCALES
from converter.conversion.recipe.recipe import NEAREST

#: Weights that share a scale in lensconv's kernel (``GROUP`` in ``kernels.fused``, without importing numba).
FUSED_GROUP = 64
#: Every packed format of SDNQ 0.2.8 packs 2, 4, 8 or 16 numbers at a time; runs of 128 fill whole bytes in each.
PACKING_RUN = 128
#: The most bytes that SDNQ takes for one number besides its source while it quantizes rows: bfloat16 and float32
#: copies, the scaled numbers, codes and what packing takes. Measured over all integer and float formats.
ROWS_WORKING_BYTES = 40
#: The same where it factorises, rotates, tries dtypes or sorts a codebook.
WHOLE_WORKING_BYTES = 96


class Kind(Enum):
    """Which code does the arithmetic, and on how much at a time."""

    FUSED = "lensconv's kernel"
    DEVICE = "lensconv's kernel on a device"
    ROWS = "SDNQ on runs of rows"
    COLUMNS = "SDNQ on runs of rows, which become columns of a transposed result"
    WHOLE = "SDNQ on the whole tensor"


#: The kinds that give the bytes of SDNQ on the CPU wherever they run.
OWN_KINDS = frozenset({Kind.FUSED, Kind.DEVICE})


@dataclass(frozen=True, slots=True)
class Method:
    """The way in which one module is quantized."""

    kind: Kind
    round_scales: bool = False
    """Whether lensconv's kernel writes scales and zero points as bfloat16 (else float32)."""
    rows_multiple: int = 1
    """Runs of rows must be multiples of this, so that each packs into whole bytes."""
    rounding: str = NEAREST
    """How codes are chosen; unless it is the nearest, SDNQ's are where a search begins, which the CPU does."""


def choose_method(
    module: PlannedModule, parts: Mapping[str, TensorSpec], *, use_fused: bool = True, rounding: str = NEAREST
) -> Method:
    """Choose the fastest way that is known to give SDNQ's bytes, and whether scales are searched afterwards.

    Args:
        module: what to quantize and how.
        parts: the tensors that it becomes, by part.
        use_fused: whether lensconv's kernel may be chosen.
        rounding: how codes are chosen; it must work for the module.
    """
    return replace(_sdnqs_method(module, parts, use_fused=use_fused), rounding=rounding)


def _sdnqs_method(module: PlannedModule, parts: Mapping[str, TensorSpec], *, use_fused: bool) -> Method:
    """Choose the fastest way that is known to give SDNQ's bytes.

    Args:
        module: what to quantize and how.
        parts: the tensors that it becomes, by part.
        use_fused: whether lensconv's kernel may be chosen.
    """
    options = module.options
    if (
        any(options.get(name) for name in (*COUPLES, *QUANTIZED_SCALES))
        or options.get("group_size") == -2
        # A constant group gives 0/0, which becomes uint32 by a rule that depends on the position in the tensor.
        or options["weights_dtype"] == "uint32"
    ):
        return Method(Kind.WHOLE)
    if use_fused and _is_fused(module):
        return Method(Kind.FUSED, round_scales=not options["dequantize_fp32"])
    rows = module.shape[0]
    multiple = PACKING_RUN // gcd(PACKING_RUN, prod(module.shape[1:]))
    if rows > 1 and all(spec.shape[1:] == (rows,) for spec in parts.values()):
        return Method(Kind.COLUMNS, rows_multiple=multiple)
    # The weight of a transposed convolution has its rows in the second dimension.
    if rows == 1 or "ConvTranspose" in options["layer_class_name"] or parts["scale"].shape[0] != rows:
        return Method(Kind.WHOLE)
    return Method(Kind.ROWS, rows_multiple=multiple)


def _is_fused(module: PlannedModule) -> bool:
    options = module.options
    return (
        options["weights_dtype"] == "uint4"
        and options["layer_class_name"] == "Linear"
        and options["torch_dtype"] == "bfloat16"
        and options["group_size"] in (0, FUSED_GROUP)
        and module.shape[1] % FUSED_GROUP == 0
        and options.get("quantized_matmul_dtype") in (None, "int8", "uint8")
    )


def plan_methods(plan: Plan) -> dict[str, Method]:
    """The method for every quantized module, by the source name of its weight."""
    parts = plan.parts
    return {source: choose_method(module, parts[source]) for source, module in plan.modules.items()}
