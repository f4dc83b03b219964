"""The facts about a quantized checkpoint that its headers and its small files contain.

Neither torch nor diffusers is imported, and no weight is read. The facts can be collected from any checkpoint that
SDNQ wrote; of Lens, the names and shapes of its tensors are known too, and of releases of lensconv the manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.header import TensorEntry
from converter.checkpoint.source import count_bytes_by_dtype, examine_checkpoint
from converter.conversion.planning.patterns import matching_pattern
from converter.conversion.release.manifest import Manifest, ManifestComponent, read_manifest
from converter.errors import InputError, UnsupportedCheckpoint
from converter.models.families import family
from converter.models.lens.layout import CLASS_NAME, LensConfig, lens_family, lens_tensors
from converter.verification.configuration import read_quantization_config
from converter.verification.modules import quantized_modules
from converter.verification.report import FamilyFootprint


class Audit:
    """A checkpoint, and the facts in its headers.

    Args:
        path: a component folder, a pipeline repo or a ``.safetensors`` file.
        component: which component of a pipeline repo; its denoiser by default.
        manifest: that of the release, where it has been read already.

    Raises:
        MissingInput: a file is missing or cannot be read.
        MalformedCheckpoint: a file breaks its format.
        UnsupportedCheckpoint: the checkpoint contains no safetensors weights.
        UsageError: the component does not exist.
    """

    def __init__(self, path: Path, *, component: str | None = None, manifest: Manifest | None = None) -> None:
        self.checkpoint = examine_checkpoint(path, component=component)
        self.root = self.checkpoint.pipeline or self.checkpoint.folder
        self.quantization = read_quantization_config(self.checkpoint)
        self.modules = quantized_modules(self.checkpoint, self.config)
        self.owners = {entry.name: name for name, module in self.modules.items() for entry in module.parts.values()}
        """Names of quantized modules by the names of their tensors."""
        self.manifest = manifest
        self.manifest_problem = ""
        try:
            self.manifest = manifest or read_manifest(self.root)
        except InputError as error:
            self.manifest_problem = error.message

    @property
    def name(self) -> str:
        """The component's name; empty outside of a pipeline repo."""
        return self.checkpoint.component

    @property
    def described(self) -> ManifestComponent | None:
        """What the manifest says about this component; None if it does not describe it."""
        return self.manifest.components.get(self.name) if self.manifest is not None else None

    def is_calibrated(self, module: str) -> bool:
        """Whether codes of a quantized module make up for each other's errors, by the manifest."""
        return self.described is not None and self.described.rounding.is_calibrated(module)

    @property
    def converted(self) -> frozenset[str]:
        """Names of the components that were converted, by the manifest; none without one."""
        return frozenset(self.manifest.components) if self.manifest is not None else frozenset()

    @property
    def config(self) -> Mapping[str, Any]:
        """Content of the quantization config; empty if there is none."""
        return self.quantization.content

    @cached_property
    def class_name(self) -> str:
        """Class of the model; Lens is recognised by its tensors too."""
        is_lens = all(lens_family(name) for name in self.checkpoint.tensors)
        return self.checkpoint.class_name or (CLASS_NAME if is_lens else "")

    @cached_property
    def kept(self) -> dict[str, TensorEntry]:
        """The tensors outside of quantized modules, by name."""
        return {name: tensor.entry for name, tensor in self.checkpoint.tensors.items() if name not in self.owners}

    @cached_property
    def float_dtype(self) -> str:
        """Dtype of the model when it was quantized: the most frequent one of the kept tensors."""
        floats = Counter(entry.dtype for entry in self.kept.values() if entry.dtype in WEIGHT_DTYPES)
        return floats.most_common(1)[0][0] if floats else "BF16"

    @cached_property
    def lens_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the unquantized model; empty if it is not Lens, or its size is unknown."""
        if self.class_name != CLASS_NAME or not self.checkpoint.config:
            return {}
        try:
            return dict(lens_tensors(LensConfig.from_dict(self.checkpoint.config)))
        except UnsupportedCheckpoint:
            return {}

    @cached_property
    def is_renamed(self) -> bool:
        """Whether the configuration names weights that are not in the file.

        SDNQ uses the names of modules. transformers renames the tensors of some classes when it saves them, so that
        headers do not show the dtype of a weight of such a class.
        """
        lists = (*(self.config.get("modules_dtype_dict") or {}).values(), self.config.get("modules_quant_config") or ())
        named = {name for names in lists for name in names if name.endswith(".weight") and "*" not in name}
        return self.class_name != CLASS_NAME and not named <= self.checkpoint.tensors.keys()

    def excluding_pattern(self, weight: str) -> str | None:
        """The pattern by which the configuration keeps a weight from being quantized; None if there is none."""
        return matching_pattern(weight, self.config.get("modules_to_not_convert") or ())

    @property
    def parameters(self) -> int:
        """Parameters of the unquantized model, as far as the tensors show them."""
        kept = sum(prod(entry.shape) for entry in self.kept.values())
        return kept + sum(module.elements or 0 for module in self.modules.values())

    @property
    def unquantized_tensors(self) -> int:
        """Tensors of the unquantized model."""
        return len(self.kept) + len(self.modules)

    def weight_shape(self, module: str) -> tuple[int, ...] | None:
        """Shape of a module's unquantized weight, by its class or the manifest; None if neither has it."""
        shape = self.lens_shapes.get(f"{module}.weight")
        if shape is None and self.described is not None:
            shape = self.described.shapes.get(module)
        return shape

    def footprints(self) -> tuple[FamilyFootprint, ...]:
        """Tensors and bytes by family, the largest first."""
        members: dict[str, list[tuple[str, int]]] = {}
        for name, tensor in self.checkpoint.tensors.items():
            key = family(f"{self.owners[name]}.weight" if name in self.owners else name, self.class_name)
            members.setdefault(key, []).append((tensor.entry.dtype, tensor.entry.bytes))
        quantized = Counter(family(f"{name}.weight", self.class_name) for name in self.modules)
        footprints = (
            FamilyFootprint(
                key, len(sizes), sum(size for _, size in sizes), count_bytes_by_dtype(sizes), quantized[key]
            )
            for key, sizes in members.items()
        )
        return tuple(sorted(footprints, key=lambda footprint: (-footprint.bytes, footprint.name)))
