"""Model classes by their names, and torch's dtypes by those of safetensors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import torch

from converter.checkpoint.dtypes import TORCH_NAMES
from converter.errors import UnsupportedCheckpoint, printable
from converter.libraries import load_library
from converter.models.lens.layout import CLASS_NAME as LENS

#: torch's dtypes by the names that safetensors gives them.
TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, torch_name) for name, torch_name in TORCH_NAMES.items()}
#: The names that safetensors gives torch's dtypes.
SAFETENSORS_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
#: Suffixes of names in the libraries that are not models.
_NOT_MODELS = ("Config", "Image", "Output", "Pipeline", "Processor", "Scheduler", "Tokenizer")


def refuse_absurd(config: Mapping[str, Any], most: int, where: str) -> None:
    """Refuse a config that asks for more layers than the tensors can fill; they could take all memory."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            refuse_absurd(value, most, where)
        elif re.search("layer|block|depth", key) and type(value) is int and value > most:
            raise UnsupportedCheckpoint(
                f"{where}: {key} is {printable(str(value), 20)}, more than the number of tensors",
                "Compare the config with the one that the model's authors publish.",
            )


def find_class(name: str, where: str) -> Any:
    """Find a model class by its name: lensconv's own first, then in diffusers, then in transformers.

    Args:
        name: of the class.
        where: the file that contains the name, for messages.

    Raises:
        UnsupportedCheckpoint: neither library has a model of that name.
    """
    if name == LENS:
        return load_library("converter.models.lens.modules").LensTransformer2DModel
    libraries = load_library("diffusers"), load_library("transformers")
    bases = libraries[0].ModelMixin, libraries[1].PreTrainedModel
    for library in libraries:
        # The names of a library are its classes and functions, which it imports when they are asked for.
        found = getattr(library, name, None)
        if isinstance(found, type) and issubclass(found, bases):
            return found
    known = {LENS, *(candidate for library in libraries for candidate in dir(library))} - {name}
    models = [candidate for candidate in known if not candidate.endswith(_NOT_MODELS)]
    near = difflib.get_close_matches(name, models, n=3)
    raise UnsupportedCheckpoint(
        f"{where}: {name}: neither diffusers nor transformers has a model of that name",
        f"Similar names: {', '.join(near)}." if near else "Update diffusers and transformers.",
    )
