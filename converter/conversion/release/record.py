"""What a conversion says about itself: SDNQ's summary and the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from converter._version import __version__
from converter.checkpoint.dtypes import LONG_NAMES
from converter.checkpoint.source import Checkpoint
from converter.conversion.planning.plan import Plan, parameter_count
from converter.conversion.recipe.recipe import Recipe
from converter.conversion.release.manifest import MANIFEST_FORMAT, MANIFEST_VERSION, Manifest, ReleaseFile


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
        "quant_transformer_dtypes": {LONG_NAMES.get(dtype, dtype): size for dtype, size in plan.bytes_by_dtype.items()},
        "base_transformer_tensors": len(checkpoint.tensors),
        "quant_transformer_tensors": len(plan.tensors),
    }


def _gb(size: int) -> float:
    return round(size / 1e9, 3)


def conversion_manifest(
    plan: Plan,
    checkpoint: Checkpoint,
    recipe: Recipe,
    files: Iterable[ReleaseFile],
    *,
    quantize_from: str,
    shard_bytes: int,
    nonfinite: Mapping[str, int],
    device: str,
    headers: Mapping[str, str],
) -> Manifest:
    """The manifest of a release that has been written.

    Args:
        plan: what was written.
        checkpoint: what it was made from.
        recipe: the recipe of the conversion.
        files: all other files.
        quantize_from: ``bfloat16`` or ``float32``.
        shard_bytes: the limit for a shard.
        nonfinite: numbers that are not finite, by tensor.
        device: the device on which SDNQ's own functions ran; empty if it was the CPU, or none ran.
        headers: sha256 of the header of every weight file, by its name in the release.
    """
    parameters = parameter_count(plan, checkpoint)
    content = {
        "format": MANIFEST_FORMAT,
        "format_version": MANIFEST_VERSION,
        "versions": {"lensconv": __version__, **plan.versions},
        **({"device": device} if device else {}),
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
            "nonfinite": dict(nonfinite),
            **({"left_out": list(plan.ignored)} if plan.ignored else {}),
            **({"removed_prefix": checkpoint.removed_prefix} if checkpoint.removed_prefix else {}),
            **({"assumed_config": dict(plan.assumed_config)} if plan.assumed_config else {}),
        },
        "recipe": {
            "name": recipe.name,
            "seed": recipe.seed,
            "quantize_from": quantize_from,
            "max_shard_bytes": shard_bytes,
            "sdnq": dict(plan.quantization_config),
            "quantized": {
                module.name: {"weights_dtype": module.options["weights_dtype"], "shape": list(module.shape)}
                for module in sorted(plan.modules.values(), key=lambda module: module.name)
            },
            "kept": sorted(plan.kept_modules),
        },
        "output": {
            "tensors": len(plan.tensors),
            "parameters": parameters,
            "bytes_by_dtype": plan.bytes_by_dtype,
            "headers": dict(sorted(headers.items())),
        },
        "files": [file.to_dict() for file in sorted(files, key=lambda file: file.name)],
    }
    return Manifest.parse(content)
