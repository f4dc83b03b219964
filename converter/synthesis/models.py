"""The tensors that a class has with a config, as its library writes them; nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.checkpoint.layout import TensorSpec
from converter.libraries import load_library


@dataclass(frozen=True)
class ModelKind:
    """A class of a library."""

    library: str
    """``diffusers`` or ``transformers``."""
    class_name: str
    prefix: str = ""
    """What the names in files begin with, if those of the model may lack it."""

    @property
    def is_transformers(self) -> bool:
        """Whether transformers loads and saves it, not diffusers."""
        return self.library == "transformers"

    @property
    def stem(self) -> str:
        """Name of the weight file, without its suffix."""
        return "model" if self.is_transformers else "diffusion_pytorch_model"

    def find_class(self) -> Any:
        """The class itself."""
        return getattr(load_library(self.library), self.class_name)


def model_tensors(kind: ModelKind, config: Mapping[str, Any], dtype: str) -> tuple[TensorSpec, ...]:
    """Names and shapes of a model's tensors, under the names of the files and in the order of the state dict.

    Args:
        kind: the class.
        config: content of ``config.json``.
        dtype: of the floating point numbers; all others become I64.

    Raises:
        DependencyError: the library cannot be imported.
        MemoryLimitError: there is too little memory for it.
    """
    model_class = kind.find_class()
    with load_library("accelerate").init_empty_weights():
        if kind.is_transformers:
            model = model_class(model_class.config_class.from_dict(dict(config)))
        else:
            model = model_class.from_config(dict(config))
    if kind.is_transformers:
        # This import takes torch with it.
        from converter.models.empty import saved_by_transformers

        model.tie_weights()
        state = saved_by_transformers(model)
    else:
        state = model.state_dict()
    return tuple(
        TensorSpec(
            kind.prefix + name.removeprefix(kind.prefix),
            dtype if tensor.is_floating_point() else "I64",
            tuple(tensor.shape),
        )
        for name, tensor in state.items()
    )
