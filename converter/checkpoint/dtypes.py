"""The dtypes of the safetensors format: their names, their sizes, their order in a file.

Order and names are those of files that safetensors 0.8.0 writes; ``tests/test_header.py`` compares them.
"""

from __future__ import annotations

from math import prod

#: Bits of one element, listed in the order in which safetensors lays dtypes out in a file.
BITS: dict[str, int] = {
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
    "F32": 32,
    "U32": 32,
    "I32": 32,
    "BF16": 16,
    "F16": 16,
    "U16": 16,
    "I16": 16,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I8": 8,
    "U8": 8,
    "F6_E3M2": 6,
    "F6_E2M3": 6,
    "F4": 4,
    "BOOL": 8,
}

#: Position of a dtype in that order: the widest alignment comes first.
RANK: dict[str, int] = {dtype: rank for rank, dtype in enumerate(BITS)}

#: The dtypes that the weights of an unquantized model come in.
WEIGHT_DTYPES = frozenset({"F64", "F32", "BF16", "F16"})

#: Names as ``sdnq_quantization_summary.json`` spells them where they differ.
LONG_NAMES: dict[str, str] = {
    "F64": "FLOAT64",
    "F32": "FLOAT32",
    "F16": "FLOAT16",
    "BF16": "BFLOAT16",
    "I64": "INT64",
    "I32": "INT32",
    "I16": "INT16",
    "I8": "INT8",
    "U64": "UINT64",
    "U32": "UINT32",
    "U16": "UINT16",
    "U8": "UINT8",
    "F8_E4M3": "FLOAT8_E4M3FN",
    "F8_E5M2": "FLOAT8_E5M2",
}

#: Names as torch spells them.
TORCH_NAMES: dict[str, str] = {
    **{name: long_name.lower() for name, long_name in LONG_NAMES.items()},
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "BOOL": "bool",
    "C64": "complex64",
}


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Bytes that a tensor takes, or None where its bits do not fill whole bytes."""
    whole, rest = divmod(prod(shape) * BITS[dtype], 8)
    return None if rest else whole
