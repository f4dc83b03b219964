"""The reference: SDNQ itself, on a model that diffusers or transformers loads in bfloat16."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from converter.libraries import load_library
from tests.tiny_models import DIFFUSERS, model_class

SDNQ_DTYPES: dict[str, dict[str, Any]] = load_library("sdnq.common").dtype_dict
#: Dtypes that SDNQ lists and cannot quantize to on this version of torch.
BROKEN = {"uint32", "float8_e8m0fnu"}
#: What the recipe lens-uint4-static means in SDNQ's own terms.
LENS_OPTIONS: dict[str, Any] = {
    "weights_dtype": "uint4",
    "quantized_matmul_dtype": "int8",
    "use_quantized_matmul": True,
    "dequantize_fp32": False,
    "modules_to_not_convert": ["*.img_mod.*", "*.txt_mod.*"],
}

#: Options of SDNQ that the two paths are compared with, for every class.
RECIPES: dict[str, dict[str, Any]] = {name: {"weights_dtype": name} for name in ("uint4", "int8", "int5")} | {
    "float8": {"weights_dtype": "float8_e4m3fn"},
    "svd": {"weights_dtype": "uint4", "use_svd": True, "svd_rank": 8, "svd_steps": 4},
    "hadamard": {"weights_dtype": "uint4", "use_hadamard": True},
}
_MATMUL = {"use_quantized_matmul": True, "dequantize_fp32": False}
#: Further ones, which between them touch every option that changes the file.
FURTHER_RECIPES: dict[str, dict[str, Any]] = {
    **{f"{name}-matmul": {"weights_dtype": name, **_MATMUL} for name in ("uint4", "int8")},
    "float8-matmul": {"weights_dtype": "float8_e4m3fn", "use_quantized_matmul": True},
    "int6-convolutions-embeddings": {"weights_dtype": "int6", "quant_conv": True, "quant_embedding": True},
    "uint3-group32": {"weights_dtype": "uint3", "group_size": 32},
    "int7-rows": {"weights_dtype": "int7", "group_size": -1},
    "int8-tensor": {"weights_dtype": "int8", "group_size": -2},
    "float4": {"weights_dtype": "float4_e2m1fn"},
    **{name: {"weights_dtype": name} for name in ("int11", "uint16")},
    "stochastic": {"weights_dtype": "int8", "use_stochastic_rounding": True},
    "codebook": {"weights_dtype": "uint4", "use_codebook": True, "codebook_steps": 4},
    "double": {"weights_dtype": "uint4", "scale_dtype": "uint8"},
    "dynamic": {
        "weights_dtype": "uint4",
        "use_dynamic_quantization": True,
        "dynamic_loss_threshold": 0.005,
        "use_quantized_matmul": True,
    },
    "dynamic-svd": {"weights_dtype": "int4", "use_dynamic_quantization": True, "use_svd": True, "svd_rank": 8},
}
#: Shard sizes: one that keeps tiny models whole, one that cuts them up.
SHARDS = {"5GB": 5_000_000_000, "200KB": 200_000}


def convert_with_sdnq(
    source: Path, output: Path, name: str, options: dict[str, Any], *, shard: str = "5GB", seed: int = 0
) -> Path:
    """Quantize a saved model by SDNQ's own path; returns the folder that it saved."""
    quantizer, loader = load_library("sdnq.quantizer"), load_library("sdnq.loader")
    dtype_name = "torch_dtype" if name in DIFFUSERS else "dtype"
    model = model_class(name).from_pretrained(source, **{dtype_name: torch.bfloat16})
    copied = {key: value.copy() if isinstance(value, (list, dict)) else value for key, value in options.items()}
    torch.manual_seed(seed)
    model = quantizer.sdnq_post_load_quant(model, quantization_config=quantizer.SDNQConfig(**copied))
    loader.save_sdnq_model(model, str(output), max_shard_size=shard)
    return output


def weight_files(folder: Path) -> dict[str, str]:
    """sha256 of the weight files and of the index, by name."""
    found = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors" or file.name.endswith(".index.json"):
            with file.open("rb") as stream:
                found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.json`` and ``quantization_config.json``, without the path of the source and in a fixed order."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    config["quantization_config"] = _sorted(config["quantization_config"])
    return config, _sorted(json.loads((folder / "quantization_config.json").read_text()))


def _sorted(config: dict[str, Any]) -> dict[str, Any]:
    for name in ("modules_to_not_convert", "modules_to_not_use_matmul"):
        config[name] = sorted(config[name])
    config["modules_dtype_dict"] = {dtype: sorted(names) for dtype, names in config["modules_dtype_dict"].items()}
    return config
