"""How much memory the weights of a pipeline take, by component and placement, from headers; without torch.

What a pipeline computes while it runs takes memory in addition, which headers do not tell; so do buffers that no file
has, such as tables of positions. Where some weights are quantized, a weight is unpacked while its module computes:
``sdnq.layers.linear.forward.quantized_linear_forward`` calls ``SDNQDequantizer.__call__``, which returns the whole
weight in the dtype of the computation, and the next module does so when the first one is done. The products of
quantized numbers (``quantized_linear_forward_int8_matmul``) unpack it to one byte a number, and to that dtype for fewer
than 32 rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Protocol

from converter.checkpoint.components import PipelineComponent
from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.loaders import LOADER_STEMS
from converter.models.kept_floats import kept_in_float32
from converter.models.roles import role

Placement = Literal["none", "model", "sequential"]
#: Where weights are while a pipeline draws, as ``generate --offload`` names it, in words; the fastest first.
PLACEMENTS: dict[Placement, str] = {
    "none": "all on the device",
    "model": "model offload",
    "sequential": "sequential offload",
}
#: Bytes of a number in bfloat16, in which people load pipelines.
BFLOAT16_BYTES = 2
_FLOAT32_BYTES = 4
#: Parts of a quantized weight that diffusers loads as they are stored; the others get the dtype of the computation, or
#: float32 with ``dequantize_fp32``: ``SDNQQuantizer.create_quantized_param`` of SDNQ 0.2.8. transformers loads all as
#: they are stored.
_AS_STORED = frozenset({"weight", "scale_2", "scale_zero_point", "zero_point_scale", "zero_point_2"})
_CONVERTED = frozenset({"scale", "zero_point", "svd_up", "svd_down"})
#: Ends of the names of numbers in MXFP4, and of their scales, in the experts of GPT-OSS.
_MXFP4 = ("_blocks", "_scales")
#: The order of work. ``model_cpu_offload_seq`` of the pipelines of diffusers says the same of these roles.
_ORDER = ("text encoder", "image encoder", "adapter", "denoiser", "autoencoder")


class StoredTensor(Protocol):
    """What a header says about a tensor, or what a plan says about one that will be written."""

    @property
    def name(self) -> str:
        """Its name in the file."""

    @property
    def dtype(self) -> str:
        """By the name of safetensors."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the file."""

    @property
    def bytes(self) -> int:
        """Bytes in the file."""


@dataclass(frozen=True)
class QuantizedWeight:
    """What headers do not say about a weight that SDNQ has quantized."""

    elements: int
    """Numbers of the weight."""
    float_bytes: int | None
    """Bytes of a number of its scales once they are loaded; None if they keep their dtype."""


def quantized_weight(elements: int, stem: str, *, dequantize_fp32: bool) -> QuantizedWeight:
    """A weight of a component that will be loaded in bfloat16.

    Args:
        elements: numbers of the weight.
        stem: name of the weight file without its suffix, which shows the library that loads it.
        dequantize_fp32: the option of SDNQ.
    """
    if stem == LOADER_STEMS["transformers"]:
        return QuantizedWeight(elements, None)
    return QuantizedWeight(elements, _FLOAT32_BYTES if dequantize_fp32 else BFLOAT16_BYTES)


@dataclass(frozen=True)
class ComponentMemory:
    """The weights of a component once they are loaded."""

    name: str
    bytes: int
    largest_module: int
    """Bytes of the most that is moved at once where each module is moved by itself, and of what it unpacks."""
    unpacked: int = 0
    """Bytes of the largest quantized weight while its module computes; 0 if there is none."""
    stays: bool = False
    """Whether offloading leaves it on the device."""
    from_files: bool = False
    """Whether only the sizes of its files are known: it then counts as stored, and its modules do not count."""
    mxfp4: int = 0
    """Bytes of the numbers in MXFP4 and their scales: model offload leaves them on the device, as ``generate`` and
    diffusers do."""
    without_mxfp4: int = 0
    """Bytes of the whole component where MXFP4 is unpacked: for sequential offload, and where the device cannot use it;
    0 if it has none."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "name": self.name,
            "bytes": self.bytes,
            "largest_module_bytes": self.largest_module,
            "unpacked_weight_bytes": self.unpacked,
            "from_headers": not self.from_files,
            **({"bytes_without_mxfp4": self.without_mxfp4} if self.mxfp4 else {}),
        }


@dataclass(frozen=True)
class PipelineMemory:
    """The weights of a pipeline."""

    components: tuple[ComponentMemory, ...]
    """In the order of work."""

    @property
    def total(self) -> int:
        """Bytes of all weights."""
        return sum(component.bytes for component in self.components)

    @property
    def largest(self) -> int:
        """Bytes of the largest component."""
        return max((component.bytes for component in self.components), default=0)

    def placed(self, offload: str, *, on_cpu: bool) -> tuple[int, int]:
        """The most bytes of weights on the host and on the accelerator at the same time.

        Args:
            offload: ``none``, each component is moved to the accelerator once it is loaded; ``model``, it is moved
                when it runs; ``sequential``, so is each module.
            on_cpu: whether everything runs on the CPU.
        """
        unpacked = max((component.unpacked for component in self.components), default=0)
        if on_cpu:
            return self.total + unpacked, 0
        if offload == "none":
            return self.largest, self.total + unpacked
        moved = [component for component in self.components if not component.stays]
        staying = sum(component.bytes for component in self.components if component.stays)
        if offload == "model":
            staying += sum(component.mxfp4 for component in moved)
            largest = max((item.bytes - item.mxfp4 + item.unpacked for item in moved), default=0)
            return self.total, staying + largest
        host = sum(component.without_mxfp4 or component.bytes for component in self.components)
        return host, staying + max((component.largest_module for component in moved), default=0)

    def to_dict(self) -> dict[str, Any]:
        """Return the placements and the components as JSON values."""
        placed = {name: self.placed(name, on_cpu=False) for name in PLACEMENTS}
        return {
            **{name: {"device_bytes": device, "ram_bytes": ram} for name, (ram, device) in placed.items()},
            "by_component": [component.to_dict() for component in self.components],
        }


def in_order(components: Iterable[tuple[str, ComponentMemory]]) -> tuple[ComponentMemory, ...]:
    """Sort components into the order of work.

    Args:
        components: each with its class.
    """

    def rank(item: tuple[str, ComponentMemory]) -> int:
        class_name, memory = item
        found = role(memory.name, class_name)
        return _ORDER.index(found) if found in _ORDER else len(_ORDER)

    return tuple(memory for _, memory in sorted(components, key=rank))


def pipeline_memory(
    components: Iterable[PipelineComponent], size: int, *, counts_files: bool = False
) -> PipelineMemory:
    """Add up the weights of the components that have some.

    Args:
        components: with their headers.
        size: bytes of a number in the dtype of the computation.
        counts_files: whether to count the files of a component whose headers are not known; else it counts nothing.
    """
    return PipelineMemory(in_order(other_memory(components, size, counts_files=counts_files)))


def other_memory(
    components: Iterable[PipelineComponent], size: int, *, counts_files: bool
) -> list[tuple[str, ComponentMemory]]:
    """The weights of components, each with its class; see ``pipeline_memory``."""
    return [(item.class_name, _examined_memory(item, size, counts_files)) for item in components if item.is_model]


def _examined_memory(component: PipelineComponent, size: int, counts_files: bool) -> ComponentMemory:
    name, class_name = component.name, component.class_name
    if not component.headers and counts_files:
        stays = role(name, class_name) == "safety checker"
        return ComponentMemory(name, component.footprint.bytes, 0, stays=stays, from_files=True)
    tensors = [entry for header in component.headers for entry in header.tensors.values()]
    return quantized_memory(name, class_name, tensors, size, _by_names(tensors, component.quantization))


def _by_names(tensors: Sequence[StoredTensor], method: str) -> dict[str, QuantizedWeight]:
    """The quantized weights of a component as far as names show them; the numbers that they unpack are not known."""
    if method != "sdnq":
        return {}
    names = {tensor.name for tensor in tensors}
    owners = (name.removesuffix(".scale") for name in names if name.endswith(".scale"))
    return {owner: QuantizedWeight(0, None) for owner in owners if f"{owner}.weight" in names}


def quantized_memory(
    name: str,
    class_name: str,
    tensors: Iterable[StoredTensor],
    size: int,
    quantized: Mapping[str, QuantizedWeight],
) -> ComponentMemory:
    """The weights of a component that may be quantized.

    Args:
        name: of the component.
        class_name: of the model.
        tensors: as they are in the files.
        size: bytes of a number in the dtype of the computation.
        quantized: what SDNQ has quantized, by the name of the module.
    """
    loaded, moved, mxfp4 = Counter[str](), Counter[str](), 0
    for tensor in tensors:
        owner, _, part = tensor.name.rpartition(".")
        taken = _loaded_bytes(tensor, class_name, size, quantized.get(owner), part)
        loaded[owner] += taken
        if tensor.dtype == "U8" and part.endswith(_MXFP4):
            mxfp4 += taken
            # A byte of MXFP4 holds two numbers, which need no scales once they are unpacked.
            taken = 2 * taken * size if part.endswith("_blocks") else 0
        moved[owner] += taken
    unpacked = {module: weight.elements * size for module, weight in quantized.items()}
    return ComponentMemory(
        name,
        sum(loaded.values()),
        max((taken + unpacked.get(module, 0) for module, taken in moved.items()), default=0),
        unpacked=max(unpacked.values(), default=0),
        stays=role(name, class_name) == "safety checker",
        mxfp4=mxfp4,
        without_mxfp4=sum(moved.values()) if mxfp4 else 0,
    )


def unquantized_memory(
    name: str,
    class_name: str,
    tensors: Iterable[StoredTensor],
    size: int,
    quantized: Mapping[str, QuantizedWeight],
) -> ComponentMemory:
    """The weights of the model that a quantized component was made from; arguments as for ``quantized_memory``."""
    modules = Counter[str]()
    for tensor in tensors:
        owner, _, part = tensor.name.rpartition(".")
        if owner not in quantized or part not in _AS_STORED | _CONVERTED:
            modules[owner] += _loaded_bytes(tensor, class_name, size, None, part)
    for module, weight in quantized.items():
        width = _FLOAT32_BYTES if kept_in_float32(f"{module}.weight", class_name) else size
        modules[module] += weight.elements * width
    stays = role(name, class_name) == "safety checker"
    return ComponentMemory(name, sum(modules.values()), max(modules.values(), default=0), stays=stays)


def _loaded_bytes(
    tensor: StoredTensor, class_name: str, size: int, quantized: QuantizedWeight | None, part: str
) -> int:
    """Bytes of a tensor once it is loaded."""
    # What is no float, such as the codes of SDNQ, is loaded as it is.
    if tensor.dtype not in WEIGHT_DTYPES or (quantized is not None and part in _AS_STORED):
        return tensor.bytes
    if quantized is not None and part in _CONVERTED:
        return tensor.bytes if quantized.float_bytes is None else prod(tensor.shape) * quantized.float_bytes
    return prod(tensor.shape) * (_FLOAT32_BYTES if kept_in_float32(tensor.name, class_name) else size)
