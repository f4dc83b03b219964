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
INDEX_SUFFIX = ".safetensors.index.json"
#: Names of the files of a variant; the first group of each is the variant.
_VARIANT_NAMES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:diffusion_pytorch_model|model)\.([^.]+?)(?:-\d{5}-of-\d{5})?\.safetensors",
        r"(?:diffusion_pytorch_model|model)-\d{5}-of-\d{5}\.([^.]+)\.safetensors",
        r"(?:diffusion_pytorch_model|model)\.safetensors\.index\.([^.]+)\.json",
        r"(?:diffusion_pytorch_model|model)\.safetensors\.(?!index\.json)([^.]+)\.index\.json",
    )
)


@dataclass(frozen=True)
class WeightNames:
    """The names of a model's weight file, or of its shards' index."""

    stem: str
    """Name of the weight file without its suffix and its variant, or of all shards without their numbers."""
    variant: str = ""
    """Such as ``fp16``; empty for the plain files."""
    index: str | None = None
    """The index of the shards; None if there is one weight file."""

    @property
    def file(self) -> str:
        """The weight file, if there are no shards."""
        return f"{self.stem}.{self.variant}{WEIGHTS_SUFFIX}" if self.variant else self.stem + WEIGHTS_SUFFIX


def find_weights(
    names: Collection[str], variant: str | None = None, stems: Sequence[str] = WEIGHT_STEMS
) -> WeightNames | None:
    """Choose the weights in a folder: as a loader does, else the only variant, else the only weight file.

    Args:
        names: names of the files in the folder.
        variant: the variant to prefer to the plain files, where the folder has it.
        stems: the stems to look for, in this order.

    Returns:
        None if there are no weights, or none of them is to be preferred.
    """
    wanted = [variant, ""] if variant else [""]
    variants = variants_in(names)
    if len(variants) == 1:
        wanted += variants
    for candidate in wanted:
        for stem in stems:
            index = next((name for name in _index_names(stem, candidate) if name in names), None)
            found = WeightNames(stem, candidate, index)
            if index or found.file in names:
                return found
    present = [name for name in names if name.endswith(WEIGHTS_SUFFIX)]
    return WeightNames(present[0].removesuffix(WEIGHTS_SUFFIX)) if len(present) == 1 else None


def _index_names(stem: str, variant: str) -> tuple[str, ...]:
    if not variant:
        return (stem + INDEX_SUFFIX,)
    return (f"{stem}{WEIGHTS_SUFFIX}.index.{variant}.json", f"{stem}{WEIGHTS_SUFFIX}.{variant}.index.json")


def variants_in(names: Collection[str]) -> list[str]:
    """The variants of which there are files, sorted."""
    return sorted({variant_of(name) for name in names} - {""})


def variant_of(name: str) -> str:
    """The variant that the name of a weight file or an index contains; empty if it contains none."""
    matches = (pattern.fullmatch(name) for pattern in _VARIANT_NAMES)
    return next((match[1] for match in matches if match), "")


def plain_name(name: str) -> str:
    """The name of a weight file or an index without its variant."""
    variant = variant_of(name)
    return name.replace(f".{variant}", "", 1) if variant else name
