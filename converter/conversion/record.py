"""What a conversion says about itself: SDNQ's summary and the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter._version import __version__
from converter.checkpoint.dtypes import LONG_NAMES
from converter.checkpoint.header import Header
from converter.checkpoint.layout import Layout
from converter.conversion.execution.execute import Outcome
from converter.conversion.planning.plan import Plan, parameter_count
from converter.conversion.planning.rounding import choose_roundings
from converter.conversion.release.manifest import MANIFEST_FORMAT, MANIFEST_VERSION, Manifest, ReleaseFile
from converter.conversion.request import Target
from converter.hub.shadow import Shadow
from converter.models.roles import role


@dataclass(frozen=True)
class Converted:
    """One component that was converted."""

    target: Target
    plan: Plan
    layout: Layout
    """The weight files, which are in the component's folder."""
    outcome: Outcome
    device: str
    """The device on which SDNQ's own functions ran; empty if it was the CPU, or none ran."""
    adapters: Sequence[Mapping[str, Any]] = ()
    """What the manifest says of the LoRA adapters that changed it, in their order."""
    shadow: Shadow | None = None
    """In which the source is, if it is on the Hub."""

    @property
    def is_denoiser(self) -> bool:
        """Whether it denoises, as far as names tell; a component alone has none."""
        return not self.target.name or role(self.target.name, self.plan.class_name) == "denoiser"

    @property
    def weights(self) -> list[ReleaseFile]:
        """The weight files, by path inside the release."""
        prefix, digests = self.target.checkpoint.prefix, self.outcome.digests
        return [ReleaseFile(prefix + file.name, file.total_bytes, digests[file.name]) for file in self.layout.files]

    def _describe_rounding(self) -> dict[str, Any]:
        """How codes were chosen, as an entry of the recipe; empty if they are SDNQ's."""
        found = choose_roundings(self.plan, self.target).to_dict()
        damped = {self.plan.modules[source].name: damping for source, damping in self.outcome.damped.items()}
        return {"rounding": found["rounding"] | {"damped": dict(sorted(damped.items()))}} if damped else found

    def _describe_hub(self) -> dict[str, Any]:
        """Where the source is on the Hub, as an entry of it; empty if it is on this machine."""
        if self.shadow is None:
            return {}
        address = self.shadow.repo.address
        folder = self.shadow.path_of(self.target.checkpoint.folder).removeprefix(".")
        return {"hub": {"repository": address.repo_id, "commit": address.revision, "folder": folder}}

    def _describe_file(self, header: Header) -> dict[str, Any]:
        """A weight file of the source, with its sha256 if that was compared with the Hub's record."""
        found = {"name": header.file.name, "bytes": header.file_bytes, "header_sha256": header.sha256}
        sha256 = self.shadow.record_of(header.file).sha256 if self.shadow else None
        return {**found, "sha256": sha256} if sha256 and header.file.name in self.outcome.proven else found

    def describe(self) -> dict[str, Any]:
        """The component's object in the manifest."""
        checkpoint, recipe, options, plan = self.target.checkpoint, self.target.recipe, self.target.options, self.plan
        parameters = parameter_count(plan, checkpoint)
        headers = {checkpoint.prefix + file.name: hashlib.sha256(file.header) for file in self.layout.files}
        return {
            "component": checkpoint.component,
            **({"device": self.device} if self.device else {}),
            "source": {
                "class_name": plan.class_name,
                "tensors": len(checkpoint.tensors),
                "parameters": parameters,
                "bytes_by_dtype": checkpoint.bytes_by_dtype,
                **self._describe_hub(),
                "files": [self._describe_file(header) for header in checkpoint.headers],
                "nonfinite": dict(self.outcome.nonfinite),
                **({"left_out": list(plan.ignored)} if plan.ignored else {}),
                **({"removed_prefix": checkpoint.removed_prefix} if checkpoint.removed_prefix else {}),
                **({"adapters": [dict(adapter) for adapter in self.adapters]} if self.adapters else {}),
                **({"assumed_config": dict(plan.assumed_config)} if plan.assumed_config else {}),
            },
            "recipe": {
                "name": recipe.name,
                **({"evidence_sha256": recipe.evidence_sha256} if recipe.evidence_sha256 else {}),
                "seed": recipe.seed,
                **self._describe_rounding(),
                "quantize_from": options.quantize_from,
                "max_shard_bytes": options.shard_bytes,
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
                "headers": {name: digest.hexdigest() for name, digest in sorted(headers.items())},
            },
        }


def quantization_summary(converted: Converted, files: Iterable[ReleaseFile]) -> dict[str, Any]:
    """The keys of a published ``sdnq_quantization_summary.json`` that a conversion knows.

    Sizes are in GB, the names of dtypes are the long ones. Load times, peaks and the names of the repos are left to
    the commands that measure or know them.

    Args:
        converted: the main component, which denoises; the published keys have no place for others.
        files: that were written for the converted components.
    """
    plan, checkpoint = converted.plan, converted.target.checkpoint
    config = plan.quantization_config
    own = [file for file in files if file.name.startswith(checkpoint.prefix)]
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
        "quant_transformer_repo_files_gb": _gb(sum(file.bytes for file in own)),
        "base_transformer_dtypes": {LONG_NAMES.get(k, k): size for k, size in checkpoint.bytes_by_dtype.items()},
        "quant_transformer_dtypes": {LONG_NAMES.get(dtype, dtype): size for dtype, size in plan.bytes_by_dtype.items()},
        "base_transformer_tensors": len(checkpoint.tensors),
        "quant_transformer_tensors": len(plan.tensors),
    }


def _gb(size: int) -> float:
    return round(size / 1e9, 3)


def conversion_manifest(converted: Sequence[Converted], files: Iterable[ReleaseFile]) -> Manifest:
    """The manifest of a release that has been written.

    Args:
        converted: the components that were converted, the main one first.
        files: all other files.
    """
    content = {
        "format": MANIFEST_FORMAT,
        "format_version": MANIFEST_VERSION,
        "versions": {"lensconv": __version__, **converted[0].plan.versions},
        "components": [component.describe() for component in converted],
        "files": [file.to_dict() for file in sorted(files, key=lambda file: file.name)],
    }
    return Manifest.parse(content)
