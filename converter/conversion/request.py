"""The first value of a conversion and of its plan: components of a source, the recipe for each, and options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter._version import __version__
from converter.checkpoint.components import PipelineComponent, examine_components
from converter.checkpoint.files import list_folder
from converter.checkpoint.header import changed_since
from converter.checkpoint.source import Checkpoint, open_checkpoint, pipeline_components
from converter.checkpoint.weights import variant_of
from converter.conversion.adapters.file import AdapterFile, open_adapter
from converter.conversion.choosing import choose_components
from converter.conversion.options import ConvertOptions
from converter.conversion.recipe.calibration import Calibration, CalibrationFile, open_calibration
from converter.conversion.recipe.recipe import CALIBRATED, Recipe, Rule, choose_recipe, parse_setting
from converter.errors import CalibrationError, MalformedCheckpoint, RecipeError, UsageError, first_few, printable
from converter.hub.readers import read_by_ranges
from converter.hub.shadow import Shadow
from converter.libraries import library_threads, package_versions, quantization_environment, require_library_memory


@dataclass(frozen=True)
class Target:
    """One component to convert, by which recipe, and how."""

    checkpoint: Checkpoint
    recipe: Recipe
    options: ConvertOptions
    calibration: Calibration | None = None
    """What is known of the inputs of its layers; None without a calibration."""

    @property
    def name(self) -> str:
        """The component's name; empty outside of a pipeline repo."""
        return self.checkpoint.component


@dataclass(frozen=True)
class Request:
    """What to convert, and how."""

    targets: tuple[Target, ...]
    """The components to convert, the main one first; at least one."""
    options: ConvertOptions
    others: tuple[PipelineComponent, ...] = ()
    """The components of the pipeline that stay as they are; their loaders would not fail."""
    adapters: tuple[AdapterFile, ...] = ()
    """What is added to the weights first, in this order."""
    calibration: CalibrationFile | None = None
    """What is known of the inputs of layers; None where codes are chosen without."""
    shadow: Shadow | None = None
    """The folder in place of the source, if that is on the Hub."""

    @property
    def main(self) -> Target:
        """The component that a release is named after: its denoiser, if that is converted."""
        return self.targets[0]

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The components to convert."""
        return tuple(target.checkpoint for target in self.targets)

    @property
    def source_bytes(self) -> int:
        """Footprint of what is converted."""
        return sum(checkpoint.total_bytes for checkpoint in self.checkpoints)

    def identity(self, device: str) -> dict[str, Any]:
        """Everything that decides the output; an interrupted run can continue only if all of it is the same.

        Args:
            device: the name of the device that was opened, which is that of the card.
        """
        options = self.options
        return {
            "source": [
                [target.name, header.file.name, header.sha256, *(() if self.shadow else header.stamp)]
                for target in self.targets
                for header in target.checkpoint.headers
            ],
            "commit": str(self.shadow.repo.address) if self.shadow else "",
            "components": [[other.name, [] if self.shadow else list(map(list, other.stamps))] for other in self.others],
            "adapters": [adapter.identity for adapter in self.adapters],
            "calibration": self.calibration.sha256 if self.calibration else "",
            "config": [target.checkpoint.config for target in self.targets],
            "recipe": [repr(target.recipe) for target in self.targets],
            "options": [options.variant, options.quantize_from, options.shard_bytes],
            "device": device,
            "nonfinite": options.allow_nonfinite,
            "versions": {"lensconv": __version__, **package_versions()},
            "environment": quantization_environment(),
            # A factorisation or a product of matrices gives other bits on another number of threads.
            "threads": library_threads() if any(target.recipe.depends_on_threads for target in self.targets) else 0,
        }

    def refuse_changed(self) -> None:
        """Refuse a source that changed since it was opened; what was read may be from both versions.

        Raises:
            MalformedCheckpoint: it has changed.
        """
        if self.shadow is not None:
            # A commit does not change.
            return
        headers = (header for checkpoint in self.checkpoints for header in checkpoint.headers)
        changed = [header.file for header in headers if changed_since(header)]
        changed += [file for other in self.others for file in other.changed_files]
        changed += [adapter.file for adapter in self.adapters if changed_since(adapter.header)]
        changed += [self.calibration.file] if self.calibration and changed_since(self.calibration.header) else []
        if changed:
            hint = "Wait until no program writes to it, then run the command again."
            raise MalformedCheckpoint(changed[0], "was changed while it was read", hint)


def open_request(
    source: Path,
    recipe: str | Recipe | None,
    options: ConvertOptions,
    *,
    reads_headers: bool = True,
    shadow: Shadow | None = None,
) -> Request:
    """Open a source, which must contain everything that a loader opens, and choose its recipes.

    Args:
        source: a component folder, a pipeline repo or a ``.safetensors`` file.
        recipe: a recipe, its name or its file; the default for each model's class when None.
        options: how to convert; its components, variant and settings count here.
        reads_headers: whether to read headers of the weight files of components that stay as they are.
        shadow: in which the source is, if it is on the Hub.

    Raises:
        InputError: the source or an adapter cannot be opened, a loader would fail on another component, or the recipe
            does not exist.
    """
    names = choose_components(source, options.components, options.variant, reads_headers=reads_headers)
    opened = (open_checkpoint(source, component=name, variant=options.variant) for name in names)
    checkpoints = [read_by_ranges(checkpoint, shadow) for checkpoint in opened]
    others: tuple[PipelineComponent, ...] = ()
    pipeline = checkpoints[0].pipeline
    if pipeline is not None:
        converted = {checkpoint.component for checkpoint in checkpoints}
        others = examine_components(pipeline, options.variant, besides=converted, reads_headers=reads_headers)
    for other in others:
        if other.problems:
            raise other.problems[0]
    if options.variant:
        _refuse_unknown_variant(options.variant, checkpoints, others)
    recipes = choose_recipes(recipe, checkpoints, options.settings, options.rounding)
    calibration = _open_calibration(recipes, checkpoints, options)
    targets = (
        Target(checkpoint, chosen, options, _calibration_for(checkpoint, chosen, calibration))
        for checkpoint, chosen in zip(checkpoints, recipes, strict=True)
    )
    return Request(tuple(targets), options, others, _open_adapters(options), calibration, shadow)


def _calibration_for(checkpoint: Checkpoint, recipe: Recipe, found: CalibrationFile | None) -> Calibration | None:
    return found.of(checkpoint) if found is not None and recipe.rounding == CALIBRATED else None


def _open_calibration(
    recipes: Sequence[Recipe], checkpoints: Sequence[Checkpoint], options: ConvertOptions
) -> CalibrationFile | None:
    """The calibration, if a recipe needs one.

    Raises:
        UsageError: it is missing, or given although no recipe needs it.
        CalibrationError: it is about none of the components.
    """
    using = [
        checkpoint for recipe, checkpoint in zip(recipes, checkpoints, strict=True) if recipe.rounding == CALIBRATED
    ]
    if options.calibration is None:
        if using:
            raise UsageError("rounding = calibrated needs a calibration", "Name its file with --calibration.")
        return None
    if not using:
        raise UsageError("--calibration is for calibrated rounding only", "Add --rounding calibrated, or omit it.")
    found = open_calibration(options.calibration)
    about = [found.is_about(checkpoint) for checkpoint in using]
    if not any(about):
        files = first_few([header.file.name for checkpoint in using for header in checkpoint.headers])
        reason = f"was gathered with {first_few(sorted(found.source))}, not with {files}"
        raise CalibrationError(found.file, reason, "Gather it again, with this model.")
    return found


def _open_adapters(options: ConvertOptions) -> tuple[AdapterFile, ...]:
    if options.adapters:
        # They are examined with torch, and fitted to models.
        require_library_memory()
    return tuple(map(open_adapter, options.adapters))


def choose_recipes(
    recipe: str | Recipe | None,
    checkpoints: Sequence[Checkpoint],
    settings: Sequence[str] = (),
    rounding: str | None = None,
) -> list[Recipe]:
    """The recipe of each component, with the rules of the command line.

    A rule that is meant for several components may select nothing in some of them; ``refuse_unmatched`` refuses it if
    it selects nothing in any.

    Args:
        recipe: a recipe, its name or its file; the default for each model's class when None.
        checkpoints: components of one source.
        settings: as in ``ConvertOptions``.
        rounding: as in ``ConvertOptions``.

    Raises:
        RecipeError: the recipe does not exist, or a rule or a part of the recipe names another component.
    """
    rules = [parse_setting(text) for text in settings]
    names = {checkpoint.component for checkpoint in checkpoints}
    for rule in rules:
        if rule.component and rule.component not in names:
            hint = f"Convert it with --component {rule.component}, or leave the rule out."
            raise RecipeError(f"--set {rule.component}/{rule.match}", f"{rule.component} is not converted", hint)
    chosen = []
    for checkpoint in checkpoints:
        found = choose_recipe(recipe, checkpoint)
        _refuse_unknown_components(found, checkpoint)
        own = [rule for rule in rules if rule.component in ("", checkpoint.component)]
        own_recipe = found.for_component(checkpoint.component).with_rules(own)
        chosen.append(replace(own_recipe, rounding=rounding or own_recipe.rounding))
    return [replace(made, rules=tuple(_with_purpose(rule, chosen) for rule in made.rules)) for made in chosen]


def _with_purpose(rule: Rule, recipes: Sequence[Recipe]) -> Rule:
    """The rule, optional if several components have it."""
    return replace(rule, optional=sum(rule in recipe.rules for recipe in recipes) > 1)


def _refuse_unknown_components(recipe: Recipe, checkpoint: Checkpoint) -> None:
    if checkpoint.pipeline is None:
        return
    known = pipeline_components(checkpoint.pipeline)
    for name in sorted(recipe.components.keys() - known.keys()):
        raise RecipeError(
            f"recipe {recipe.name}",
            f"[components.{printable(name)}] is not about a component of {checkpoint.pipeline}",
            f"Components: {', '.join(map(printable, known))}.",
        )


def _refuse_unknown_variant(
    variant: str, checkpoints: Sequence[Checkpoint], others: Sequence[PipelineComponent]
) -> None:
    main = checkpoints[0]
    if main.is_single_file:
        raise UsageError("--variant chooses among the weights of a folder, but SOURCE is a file", "Omit --variant.")
    if variant in (*(checkpoint.variant for checkpoint in checkpoints), *(other.variant for other in others)):
        return
    folders = [checkpoint.folder for checkpoint in checkpoints]
    folders += [other.folder for other in others if other.is_model]
    found = {variant_of(file.name) for folder in folders for file in list_folder(folder)} - {""}
    raise UsageError(
        f"{main.pipeline or main.folder}: has no weights of the variant {variant}",
        f"Its variants are: {', '.join(sorted(found))}." if found else "Omit --variant; it has no variants.",
    )
