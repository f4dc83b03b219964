"""The first value of a conversion and of its plan: a source, the recipe for it, and options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter._version import __version__
from converter.checkpoint.components import PipelineComponent, examine_components
from converter.checkpoint.files import list_folder
from converter.checkpoint.header import changed_since
from converter.checkpoint.source import Checkpoint, open_checkpoint
from converter.checkpoint.weights import variant_of
from converter.conversion.options import ConvertOptions
from converter.conversion.recipe.recipe import Recipe, choose_recipe
from converter.errors import MalformedCheckpoint, UsageError
from converter.libraries import library_threads, package_versions, quantization_environment


@dataclass(frozen=True)
class Request:
    """What to convert, by which recipe, and how."""

    checkpoint: Checkpoint
    recipe: Recipe
    options: ConvertOptions
    others: tuple[PipelineComponent, ...] = ()
    """The components of the pipeline that stay as they are; their loaders would not fail."""

    def identity(self, device: str) -> dict[str, Any]:
        """Everything that decides the output; an interrupted run can continue only if all of it is the same.

        Args:
            device: the name of the device that was opened, which is that of the card.
        """
        options = self.options
        return {
            "source": [[header.file.name, header.sha256, *header.stamp] for header in self.checkpoint.headers],
            "components": [[other.name, list(map(list, other.stamps))] for other in self.others],
            "config": self.checkpoint.config,
            "recipe": repr(self.recipe),
            "options": [options.component, options.variant, options.quantize_from, options.shard_bytes],
            "device": device,
            "nonfinite": options.allow_nonfinite,
            "versions": {"lensconv": __version__, **package_versions()},
            "environment": quantization_environment(),
            # A factorisation gives other bits on another number of threads.
            "threads": library_threads() if self.recipe.depends_on_threads else 0,
        }

    def refuse_changed(self) -> None:
        """Refuse a source that changed since it was opened; what was read may be from both versions.

        Raises:
            MalformedCheckpoint: it has changed.
        """
        changed = [header.file for header in self.checkpoint.headers if changed_since(header)]
        changed += [file for other in self.others for file in other.changed_files]
        if changed:
            hint = "Wait until no program writes to it, then run the command again."
            raise MalformedCheckpoint(changed[0], "was changed while it was read", hint)


def open_request(
    source: Path, recipe: str | Recipe | None, options: ConvertOptions, *, reads_headers: bool = True
) -> Request:
    """Open a source, which must contain everything that a loader opens, and choose its recipe.

    Args:
        source: a component folder, a pipeline repo or a ``.safetensors`` file.
        recipe: a recipe, its name or its file; the default for the model's class when None.
        options: how to convert; its component, variant and settings count here.
        reads_headers: whether to read headers of the weight files of components that stay as they are.

    Raises:
        InputError: the source cannot be opened, a loader would fail on another component, or the recipe does not exist.
    """
    checkpoint = open_checkpoint(source, component=options.component, variant=options.variant)
    others: tuple[PipelineComponent, ...] = ()
    if checkpoint.pipeline is not None:
        others = examine_components(
            checkpoint.pipeline, options.variant, besides=checkpoint.component, reads_headers=reads_headers
        )
    for other in others:
        if other.problems:
            raise other.problems[0]
    if options.variant:
        _refuse_unknown_variant(options.variant, checkpoint, others)
    return Request(checkpoint, choose_recipe(recipe, checkpoint, options.settings), options, others)


def _refuse_unknown_variant(variant: str, checkpoint: Checkpoint, others: Sequence[PipelineComponent]) -> None:
    if checkpoint.is_single_file:
        raise UsageError("--variant chooses among the weights of a folder, but SOURCE is a file", "Omit --variant.")
    if variant in (checkpoint.variant, *(other.variant for other in others)):
        return
    folders = [checkpoint.folder, *(other.folder for other in others if other.is_model)]
    found = {variant_of(file.name) for folder in folders for file in list_folder(folder)} - {""}
    raise UsageError(
        f"{checkpoint.pipeline or checkpoint.folder}: has no weights of the variant {variant}",
        f"Its variants are: {', '.join(sorted(found))}." if found else "Omit --variant; it has no variants.",
    )
