"""Sources that are not original models: another tool has quantized them already, or they are adapters.

The names of tensors are those that each tool's own files have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from converter.checkpoint.dtypes import TORCH_NAMES, WEIGHT_DTYPES
from converter.checkpoint.source import Checkpoint
from converter.errors import UnsupportedCheckpoint, printable

#: Tools by the ends of tensors' names; the first match counts, as some tools use the names of others, too.
_SIGNS = tuple(
    (re.compile(rf"(?:.*[.])?(?:{pattern})"), tool)
    for pattern, tool in (
        (r"weight\.(absmax|quant_map|quant_state\..*)|SCB", "bitsandbytes"),
        (r"wscales|wcscales|wtscale|smooth_factor", "nunchaku, SVDQuant"),
        (r"g_idx", "GPTQ"),
        (r"qweight|qzeros", "AWQ or GPTQ"),
        (r"weight_packed|weight_global_scale", "compressed-tensors"),
        (r"scaled_fp8|scale_weight|comfy_quant", "ComfyUI"),
        (r"weight\._(data|scale)(\..*)?", "quanto"),
        (r"_?weight[_:]qdata", "torchao"),
        (r"packed_weight_indices", "OrbitQuant"),
        (r"\w+_blocks", "MXFP4"),
        (r"weight_scale_2", "ModelOpt"),
        (r"weight_scale_inv", "FP8 with scales of blocks"),
        (r"weight_scale", "compressed-tensors or ModelOpt"),
    )
)
#: What makes a weight of codes a number, by tool.
_PARTNERS = ((".scales", "MLX"), (".scale", "sdnq"))
#: Dtypes of codes, if a weight has one.
_CODES = ("U8", "I8", "U32", "F8_E4M3", "F8_E5M2", "F4")
_HINT = "Convert the original, unquantized checkpoint."
#: What PEFT, diffusers, kohya's scripts and LyCORIS put into the names of an adapter's tensors.
_ADAPTER = re.compile(r"(^|[._])(lora[._](A|B|down|up|embedding_[AB])|hada_w[12]_[ab]|lokr_w[12](_[ab])?)(\.|$)")


def refuse_adapter(checkpoint: Checkpoint) -> None:
    """Refuse a source that contains a LoRA adapter, alone or beside the weights of its model.

    Raises:
        UnsupportedCheckpoint: it does.
    """
    found = next((name for name in checkpoint.tensors if _ADAPTER.search(name)), None)
    if found is not None:
        raise UnsupportedCheckpoint(
            f"{checkpoint.folder}: tensor {printable(found)} is of a LoRA adapter, not of a model",
            "Convert the model with --lora, which adds it; or load it into the result, with load_lora_weights.",
        )


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Refuse a source that is quantized already, according to its config or its tensors.

    Raises:
        UnsupportedCheckpoint: it is; the message names the tool, if it is known.
    """
    where = f"{checkpoint.folder}: already quantized"
    found = _by_tensors(checkpoint)
    config = checkpoint.config.get("quantization_config")
    if config is not None:
        method = config.get("quant_method") if isinstance(config, Mapping) else None
        tool = printable(str(method), 40) if method else (found and found[0]) or "unknown method"
        raise UnsupportedCheckpoint(f"{where} ({tool})", _HINT)
    if found:
        tool, name = found
        dtype = checkpoint.tensors[name].entry.dtype
        raise UnsupportedCheckpoint(f"{where}{f' ({tool})' if tool else ''}: tensor {name} is {dtype}", _HINT)


def _by_tensors(checkpoint: Checkpoint) -> tuple[str, str] | None:
    """The tool, empty if it is unknown, and a tensor that shows it; None if the tensors are not quantized."""
    dtypes = {name: tensor.entry.dtype for name, tensor in checkpoint.tensors.items()}
    # All tools store codes in something else than floats.
    if WEIGHT_DTYPES.issuperset(dtypes.values()):
        return None
    for pattern, tool in _SIGNS:
        for name in dtypes:
            if pattern.fullmatch(name):
                return tool, name
    for name, dtype in dtypes.items():
        stem = name.removesuffix(".weight")
        if stem != name and dtype in _CODES:
            return next((tool for end, tool in _PARTNERS if stem + end in dtypes), ""), name
        # torch has no such dtype.
        if dtype not in TORCH_NAMES:
            return "", name
    return None
