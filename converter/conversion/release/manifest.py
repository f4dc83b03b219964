"""The files of a release beside its weights that lensconv writes itself: configs, summary and manifest.

None of them holds a time, a path, a host or anything else that differs between two runs on the same input.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter._version import __version__
from converter.checkpoint.dtypes import LONG_NAMES
from converter.checkpoint.source import Checkpoint, count_bytes_by_dtype
from converter.conversion.planning.plan import Plan, parameter_count
from converter.conversion.recipe.recipe import Recipe

MANIFEST_NAME = "lensconv_manifest.json"
SUMMARY_NAME = "sdnq_quantization_summary.json"
QUANTIZATION_CONFIG_NAME = "quantization_config.json"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
#: Folder in a release for what lensconv notes about it on this machine; it is never published.
STATE_FOLDER = ".lensconv"
#: Version of the manifest's format.
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class ReleaseFile:
    """A finished file, as the manifest lists it."""

    name: str
    """Path inside the release, with slashes."""
    bytes: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256}


def write_file(folder: Path, name: str, content: bytes) -> ReleaseFile:
    """Write a small file durably.

    Raises:
        OSError: it cannot be written.
    """
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return ReleaseFile(name, len(content), hashlib.sha256(content).hexdigest())


def encode_json(content: Mapping[str, Any]) -> bytes:
    """JSON as diffusers and transformers write their configs."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def quantization_summary(plan: Plan, checkpoint: Checkpoint, component_files: Iterable[ReleaseFile]) -> dict[str, Any]:
    """The keys of a published ``sdnq_quantization_summary.json`` that a conversion knows.

    Sizes are in GB, the names of dtypes are the long ones. Load times, peaks and the names of the repos are left to
    the commands that measure or know them.

    Args:
        plan: what was written.
        checkpoint: what it was made from.
        component_files: the files of the converted component.
    """
    config = plan.quantization_config
    exact = checkpoint.tensors.keys()
    source_bytes = checkpoint.total_bytes
    output_bytes = sum(spec.bytes for spec in plan.specs)
    kind = "dynamic" if config["use_dynamic_quantization"] else "static"
    return {
        "method": f"SDNQ {config['weights_dtype']} {kind}",
        "weights_dtype": config["weights_dtype"],
        "quantized_matmul_dtype": config["quantized_matmul_dtype"],
        "group_size": config["group_size"],
        "use_quantized_matmul": config["use_quantized_matmul"],
        "dequantize_fp32": config["dequantize_fp32"],
        "modules_to_not_convert_user": [name for name in config["modules_to_not_convert"] if name not in exact],
        "base_transformer_tensor_storage_gb": _gb(source_bytes),
        "quant_transformer_tensor_storage_gb": _gb(output_bytes),
        "transformer_storage_reduction_percent": round(100 * (1 - output_bytes / source_bytes), 1),
        "base_transformer_repo_files_gb": _gb(sum(header.file_bytes for header in checkpoint.headers)),
        "quant_transformer_repo_files_gb": _gb(sum(file.bytes for file in component_files)),
        "base_transformer_dtypes": {LONG_NAMES.get(k, k): size for k, size in checkpoint.bytes_by_dtype.items()},
        "quant_transformer_dtypes": {
            LONG_NAMES.get(dtype, dtype): size
            for dtype, size in count_bytes_by_dtype((spec.dtype, spec.bytes) for spec in plan.specs).items()
        },
        "base_transformer_tensors": len(checkpoint.tensors),
        "quant_transformer_tensors": len(plan.tensors),
    }


def _gb(size: int) -> float:
    return round(size / 1e9, 3)


def manifest(
    plan: Plan,
    checkpoint: Checkpoint,
    recipe: Recipe,
    files: Iterable[ReleaseFile],
    *,
    quantize_from: str,
    shard_bytes: int,
    nonfinite: Mapping[str, int],
    headers: Mapping[str, str],
) -> dict[str, Any]:
    """``lensconv_manifest.json``: where the release comes from, what was decided, and the sha256 of every other file.

    Args:
        plan: what was written.
        checkpoint: what it was made from.
        recipe: what asked for it.
        files: all other files.
        quantize_from: ``bfloat16`` or ``float32``.
        shard_bytes: the limit for a shard.
        nonfinite: numbers that are not finite, by tensor.
        headers: sha256 of the header of every weight file, by its name in the release.
    """
    parameters = parameter_count(tensor.entry.shape for tensor in checkpoint.tensors.values())
    return {
        "format": "lensconv-manifest",
        "format_version": MANIFEST_VERSION,
        "versions": {"lensconv": __version__, **plan.versions},
        "component": checkpoint.component,
        "source": {
            "class_name": plan.class_name,
            "tensors": len(checkpoint.tensors),
            "parameters": parameters,
            "bytes_by_dtype": checkpoint.bytes_by_dtype,
            "files": [
                {"name": header.file.name, "bytes": header.file_bytes, "header_sha256": header.sha256}
                for header in checkpoint.headers
            ],
            "nonfinite": dict(sorted(nonfinite.items())),
        },
        "recipe": {
            "name": recipe.name,
            "seed": recipe.seed,
            "quantize_from": quantize_from,
            "max_shard_bytes": shard_bytes,
            "sdnq": dict(plan.quantization_config),
            "quantized": {
                module.name: {
                    "weights_dtype": module.options["weights_dtype"],
                    "shape": list(module.shape),
                }
                for module in sorted(plan.modules.values(), key=lambda module: module.name)
            },
            "kept": sorted(plan.kept_modules),
        },
        "output": {
            "tensors": len(plan.tensors),
            "parameters": parameters,
            "bytes_by_dtype": count_bytes_by_dtype((spec.dtype, spec.bytes) for spec in plan.specs),
            "headers": dict(sorted(headers.items())),
        },
        "files": [file.to_dict() for file in sorted(files, key=lambda file: file.name)],
    }
