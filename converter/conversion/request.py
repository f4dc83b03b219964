"""The first value of a conversion and of its plan: a source, the recipe for it, and options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter._version import __version__
from converter.checkpoint.source import Checkpoint, open_checkpoint
from converter.conversion.options import ConvertOptions
from converter.conversion.recipe.recipe import Recipe, choose_recipe
from converter.libraries import library_threads, package_versions, quantization_environment


@dataclass(frozen=True)
class Request:
    """What to convert, by which recipe, and how."""

    checkpoint: Checkpoint
    recipe: Recipe
    options: ConvertOptions

    def identity(self) -> dict[str, Any]:
        """Everything that decides the output; an interrupted run can continue only if all of it is the same."""
        options = self.options
        return {
            "source": [[header.file.name, header.sha256, *header.stamp] for header in self.checkpoint.headers],
            "config": self.checkpoint.config,
            "recipe": repr(self.recipe),
            "options": [options.component, options.quantize_from, options.shard_bytes, options.device],
            "nonfinite": options.allow_nonfinite,
            "versions": {"lensconv": __version__, **package_versions()},
            "environment": quantization_environment(),
            # A factorisation gives other bits on another number of threads.
            "threads": library_threads() if self.recipe.depends_on_threads else 0,
        }


def open_request(source: Path, recipe: str | Recipe | None, options: ConvertOptions) -> Request:
    """Open a source and choose its recipe.

    Args:
        source: a component folder, a pipeline repo or a ``.safetensors`` file.
        recipe: a recipe, its name or its file; the default for the model's class when None.
        options: how to convert; its component and settings count here.

    Raises:
        InputError: the source cannot be opened, or the recipe does not exist.
    """
    checkpoint = open_checkpoint(source, component=options.component)
    return Request(checkpoint, choose_recipe(recipe, checkpoint, options.settings), options)
