"""Which files of a folder hold a model's weights, decided by their names alone, as diffusers and transformers do.

A model is in ``STEM.safetensors``, or in shards that ``STEM.safetensors.index.json`` lists. The files of a variant,
such as ``fp16``, have other names: ``STEM.fp16.safetensors``, ``STEM.fp16-00001-of-00002.safetensors`` and
``STEM.safetensors.index.fp16.json``. Older versions of diffusers wrote ``STEM-00001-of-00002.fp16.safetensors`` and
``STEM.safetensors.fp16.index.json``, and it still reads them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

#: Stems of the weight files, as diffusers and transformers name them.
WEIGHT_STEMS = ("diffusion_pytorch_model", "model")
WEIGHTS_SUFFIX = ".safetensors"
#: Suffixes of files that may contain a pickle. They are named in messages and never unpickled.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: Suffixes of weights in other formats.
FOREIGN_SUFFIXES = (".gguf", ".h5", ".msgpack", ".npz", ".onnx", ".onnx_data", ".ot", ".pb", ".tflite")
#: Suffix of weights in PyTorch's own format, as both libraries write them.
PICKLED_SUFFIX = ".bin"
INDEX_SUFFIX = ".safetensors.index.json"
#: Indexes of shards in any format, and the structure of a model of OpenVINO.
_BESIDE_WEIGHTS = re.compile(r".+\.index(\.[^.]+)?\.json|openvino_.+\.xml")
_STEM, _SUFFIX = r"(?:diffusion_pytorch_model|pytorch_model|model)", r"\.(?:safetensors|bin)"
#: Names of the files of a variant; the first group of each is the variant.
_VARIANT_NAMES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_STEM}\.([^.]+?)(?:-\d{{5}}-of-\d{{5}})?{_SUFFIX}",
        rf"{_STEM}-\d{{5}}-of-\d{{5}}\.([^.]+){_SUFFIX}",
        rf"{_STEM}{_SUFFIX}\.index\.([^.]+)\.json",
        rf"{_STEM}{_SUFFIX}\.(?!index\.json)([^.]+)\.index\.json",
    )
)
_PLAIN_NAME = re.compile(rf"{_STEM}(?:-\d{{5}}-of-\d{{5}})?{_SUFFIX}(?:\.index\.json)?")


@dataclass(frozen=True)
class WeightNames:
    """The names of a model's weight file, or of its shards' index."""

    stem: str
    """Name of the weight file without its suffix and its variant, or of all shards without their numbers."""
    variant: str = ""
    """Such as ``fp16``; empty for the plain files."""
    index: str | None = None
    """The index of the shards; None if there is one weight file."""
    suffix: str = WEIGHTS_SUFFIX

    @property
    def file(self) -> str:
        """The weight file, if there are no shards."""
        return self.stem + (f".{self.variant}" if self.variant else "") + self.suffix


def find_weights(
    names: Collection[str], variant: str | None = None, stems: Sequence[str] = WEIGHT_STEMS
) -> WeightNames | None:
    """Choose the weights in a folder: as a loader does, else the only variant, else the only weight file.

    Args:
        names: names of the files in the folder.
        variant: the variant to prefer to the plain files, where the folder has it.
        stems: the stems to look for, in this order.

    Returns:
        Their names. None without weights, and None if several files could be meant.
    """
    wanted = [variant, ""] if variant else [""]
    variants = variants_in(names)
    if len(variants) == 1:
        wanted += variants
    for candidate in wanted:
        for stem in stems:
            if found := named_weights(names, stem, variant=candidate):
                return found
    present = [name for name in names if name.endswith(WEIGHTS_SUFFIX)]
    return WeightNames(present[0].removesuffix(WEIGHTS_SUFFIX)) if len(present) == 1 else None


def named_weights(
    names: Collection[str], stem: str, suffix: str = WEIGHTS_SUFFIX, variant: str = "", *, prefers_file: bool = False
) -> WeightNames | None:
    """The weights of one stem, format and variant, as a library looks for them; None if there are none.

    Args:
        names: names of the files in the folder.
        stem: name of the weight file without its suffix.
        suffix: of the weight file.
        variant: empty for the plain files.
        prefers_file: whether the weight file counts where there is an index too, as in transformers.
    """
    index = next((name for name in _index_names(stem, suffix, variant) if name in names), None)
    found = WeightNames(stem, variant, index, suffix)
    if found.file in names and (prefers_file or index is None):
        return WeightNames(stem, variant, None, suffix)
    return found if index else None


def _index_names(stem: str, suffix: str, variant: str) -> tuple[str, ...]:
    if not variant:
        return (f"{stem}{suffix}.index.json",)
    return (f"{stem}{suffix}.index.{variant}.json", f"{stem}{suffix}.{variant}.index.json")


def variants_in(names: Collection[str], suffix: str = WEIGHTS_SUFFIX) -> list[str]:
    """The variants of which there are files of a format, sorted."""
    return sorted({variant_of(name) for name in names if suffix in name} - {""})


def variant_of(name: str) -> str:
    """The variant that the name of a weight file or an index contains; empty if it contains none."""
    match = _match_variant(name)
    return match[1] if match else ""


def is_one_of_shards(name: str) -> bool:
    """Whether the name of a weight file says that there are others, which belong to the same model."""
    match = re.search(r"-\d{5}-of-(\d{5})", name)
    return match is not None and int(match[1]) > 1


def plain_name(name: str) -> str:
    """The name of a weight file or an index without its variant."""
    match = _match_variant(name)
    return name[: match.start(1) - 1] + name[match.end(1) :] if match else name


def holds_weights(name: str) -> bool:
    """Whether a file has weights by its name, in the format of any library, or belongs to such a file."""
    is_weights = name.endswith((WEIGHTS_SUFFIX, *PICKLE_SUFFIXES, *FOREIGN_SUFFIXES))
    return is_weights or _BESIDE_WEIGHTS.fullmatch(name) is not None


def is_weight_name(name: str) -> bool:
    """Whether a loader of diffusers or transformers may open a file of this name for weights, or as their index."""
    return _PLAIN_NAME.fullmatch(plain_name(name)) is not None


def _match_variant(name: str) -> re.Match[str] | None:
    return next(filter(None, (pattern.fullmatch(name) for pattern in _VARIANT_NAMES)), None)
