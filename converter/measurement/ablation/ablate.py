"""A whole ablation, one plain value a step.

original -> variants -> figures of each tensor in each storage -> errors of the velocity -> images -> ablation.json

Each level is finished for all variants before the next one begins, since it costs more.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter._version import __version__
from converter.checkpoint.writer import writing
from converter.cluster.cluster import Cluster
from converter.cluster.connection import check_address
from converter.cluster.nodes import named_cluster
from converter.console import SILENT, Reporter
from converter.conversion.planning.planner import plan_with_sdnq
from converter.conversion.recipe.recipe import Recipe, Rule
from converter.conversion.request import Target, open_request
from converter.errors import OutputError, RecipeError, UsageError
from converter.measurement.ablation.contents import (
    SCHEMA_ID,
    WEIGHTS_METHOD,
    MeasuredVariant,
    describe_variants,
)
from converter.measurement.ablation.drawing import DrawnLevels
from converter.measurement.ablation.journal import JOURNAL_NAME, AblationJournal
from converter.measurement.ablation.options import VELOCITY, WEIGHTS, AblateOptions
from converter.measurement.ablation.places import IMAGES_FOLDER, WORK_NAME, work_folder
from converter.measurement.ablation.subject import Original, hash_original
from converter.measurement.ablation.variants import Variant, builtin_variants, distinct_storages, read_variants
from converter.measurement.benchmark.output_folder import refuse_output_folder
from converter.measurement.evidence.files import write_evidence
from converter.measurement.evidence.names import ABLATION_NAME
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.prompts.suite import PromptSuite
from converter.measurement.sensitivity.digest import variant_digest
from converter.memory import peak_rss_bytes


@dataclass(frozen=True)
class AblationReport:
    """The measurements of an ablation."""

    output: Path
    content: Mapping[str, Any]
    """Content of ``ablation.json``."""
    resumed: int
    """Number of figures that earlier runs measured."""
    elapsed_s: float
    peak_rss_bytes: int

    @property
    def failures(self) -> list[str]:
        """What could not be measured, one sentence each."""
        return [
            f"{variant['name']}: {level}: {reason}"
            for variant in self.content["variants"]
            for level, reason in variant.get("failed", {}).items()
        ]

    @property
    def ok(self) -> bool:
        """Whether everything was measured."""
        return not self.failures

    @property
    def summary(self) -> str:
        """One sentence about the run."""
        resumed = f", {self.resumed} figures from an earlier run" if self.resumed else ""
        return f"{len(self.content['variants'])} variants in {self.elapsed_s:.0f} s{resumed}."

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv ablate --json`` shows."""
        return {
            "ok": self.ok,
            "output": str(self.output),
            "files": [ABLATION_NAME],
            "variants": [_shown(variant) for variant in self.content["variants"]],
            "failed": self.failures,
            "resumed": self.resumed,
            "elapsed_s": self.elapsed_s,
            "peak_rss_bytes": self.peak_rss_bytes,
        }


def ablate(
    original: Path,
    output: Path,
    recipe: str | Recipe | None = None,
    suite: PromptSuite | None = None,
    options: AblateOptions | None = None,
    drawing: GenerateOptions | None = None,
    *,
    variants: Sequence[Recipe] = (),
    ray: str | None = None,
    reporter: Reporter = SILENT,
) -> AblationReport:
    """Measure variants of a recipe, and write ``ablation.json``.

    A run that was killed continues where it stopped.

    Args:
        original: at the level of weights a component folder, a pipeline repo or a ``.safetensors`` file; else a
            pipeline repo that `generate` draws with.
        output: folder for measurements and images; created if it does not exist.
        recipe: what is examined; the default of the model's class when None.
        suite: the prompts; needed above the level of weights.
        options: how to measure.
        drawing: how to generate images; the seed is that of each prompt.
        variants: recipes to measure besides, with different names; if there are any, ``options`` choose none.
        ray: address of a cluster whose nodes measure, as for ``opened_cluster``; None if this machine does.
        reporter: shows progress and notes.

    Raises:
        InputError: the original or a variant cannot be used, or a value is out of range.
        DeviceError: this machine, or the cluster, does not have the accelerator.
        ClusterError: the cluster cannot be used, or nodes end again and again.
        OutputError: measurements cannot be written there, or the folder contains those of another ablation.
        DiskError: the disk is full.
    """
    if ray is not None:
        check_address(ray)
    return ablate_on(
        named_cluster(ray, reporter), original, output, recipe, suite, options, drawing, variants, reporter
    )


def ablate_on(
    connection: AbstractContextManager[Cluster | None],
    original: Path,
    output: Path,
    recipe: str | Recipe | None,
    suite: PromptSuite | None,
    options: AblateOptions | None,
    drawing: GenerateOptions | None,
    variants: Sequence[Recipe],
    reporter: Reporter,
) -> AblationReport:
    """Do what ``ablate`` does; ``connection`` gives a cluster, or None to measure on this machine."""
    started = time.monotonic()
    options, drawing = options or AblateOptions(), drawing or GenerateOptions()
    if options.level != WEIGHTS and suite is None:
        raise UsageError("no prompts were given, which the levels velocity and images need")
    refuse_output_folder(output, original, ("images", str(IMAGES_FOLDER), WORK_NAME))
    target = _open_target(original, recipe, options)
    found = _find_variants(target, options, variants)
    with connection as cluster:
        content, resumed = _measure(cluster, target, found, original, output, suite, options, drawing, reporter)
    return AblationReport(output, content, resumed, time.monotonic() - started, peak_rss_bytes())


def _measure(
    cluster: Cluster | None,
    target: Target,
    variants: Sequence[Variant],
    folder: Path,
    output: Path,
    suite: PromptSuite | None,
    options: AblateOptions,
    drawing: GenerateOptions,
    reporter: Reporter,
) -> tuple[dict[str, Any], int]:
    """Measure what no earlier run did, and write the file; return its content, and the number of known figures."""
    original = hash_original(target.checkpoint, reporter)
    with AblationJournal(output, original.identity(options.quantize_from), restart=options.restart) as journal:
        if options.restart:
            _drop_earlier(output)
        elif journal.is_new and (output / ABLATION_NAME).exists():
            raise OutputError(
                f"{output / ABLATION_NAME}: belongs to an earlier ablation, but {JOURNAL_NAME} is missing",
                "Choose another folder with --out, or delete it with --restart.",
            )
        resumed = journal.count
        levels = None
        if suite is not None and options.includes(VELOCITY):
            levels = DrawnLevels(folder, output, suite, options, drawing, original, journal, reporter, cluster)
        measured = _Weights(target, original, journal, output, levels, cluster, reporter).measure(variants)
        content = _describe(original, target, measured)
        if levels is not None:
            levels.measure(measured)
            content |= levels.describe()
            content["methods"] |= levels.methods()
        original.refuse_changed()
        content["variants"] = describe_variants(measured)
        write_evidence(output, ABLATION_NAME, content)
        work_folder(output).remove()
    return content, resumed


def _open_target(original: Path, recipe: str | Recipe | None, options: AblateOptions) -> Target:
    """The denoiser of the original, and the recipe that is examined.

    Raises:
        RecipeError: dtypes of the recipe depend on the weights.
        InputError: the original or the recipe cannot be used.
    """
    target = open_request(original, recipe, options.conversion).main
    if target.recipe.is_data_dependent:
        raise RecipeError(
            f"recipe {target.recipe.name}",
            "use_dynamic_quantization chooses dtypes by the weights, so there is nothing to vary",
            "Give another recipe with --recipe.",
        )
    return target


def _find_variants(target: Target, options: AblateOptions, others: Sequence[Recipe]) -> list[Variant]:
    checkpoint, recipe = target.checkpoint, target.recipe
    if others:
        recipes = [recipe, *others]
        return [Variant(one.name, one, plan_with_sdnq(checkpoint, one)) for one in recipes]
    if options.variants is not None:
        return read_variants(options.variants, checkpoint, recipe)
    return builtin_variants(checkpoint, recipe)


@dataclass(frozen=True)
class _Weights:
    """The level of weights."""

    target: Target
    original: Original
    journal: AblationJournal
    output: Path
    levels: DrawnLevels | None
    """What is measured with the quantized tensors later; None if nothing is."""
    cluster: Cluster | None
    """Whose nodes measure; None if this machine does."""
    reporter: Reporter

    def measure(self, variants: Sequence[Variant]) -> list[MeasuredVariant]:
        """Measure every tensor in every storage; keep those on disk that will be put into the model here."""
        if self.levels is None or self.cluster is not None:
            self._scan(variants, None)
        else:
            spool = work_folder(self.output).tensors
            with writing(spool):
                spool.mkdir(parents=True, exist_ok=True)
            self._scan([variant for variant in variants if not self._is_done(variant)], spool)
        return [self._measured(variant) for variant in variants]

    def _scan(self, variants: Sequence[Variant], spool: Path | None) -> None:
        wanted, options = distinct_storages(variants), self.target.options
        self.original.scan(wanted, options, spool, self.journal, self.cluster, self.reporter)

    def _is_done(self, variant: Variant) -> bool:
        """Whether nothing of a variant is left to measure, at any level."""
        known = self.journal.storages
        if any((source, storage.key) not in known for source, storage in variant.storages.items()):
            return False
        return self.levels is None or self.levels.has_all(self._measured(variant).digest)

    def _measured(self, variant: Variant) -> MeasuredVariant:
        known = self.journal.storages
        figures = {source: known[source, storage.key] for source, storage in variant.storages.items()}
        return MeasuredVariant(variant, variant_digest(variant.plan, variant.storages, known), figures)


def _describe(original: Original, target: Target, measured: Sequence[MeasuredVariant]) -> dict[str, Any]:
    """What the file says besides the variants."""
    checkpoint = target.checkpoint
    return {
        "schema": SCHEMA_ID,
        "sources": {"original": original.source()},
        "component": checkpoint.component,
        "class_name": measured[0].variant.plan.class_name,
        "unquantized_bytes": _unquantized_bytes(target),
        "versions": {"lensconv": __version__, **measured[0].variant.plan.versions},
        "methods": {"weights": WEIGHTS_METHOD},
    }


def _unquantized_bytes(target: Target) -> int:
    """Footprint of the denoiser if every module is kept."""
    kept = Recipe("unquantized", target.recipe.options, (Rule(match="*", keep=True),))
    return sum(spec.bytes for spec in plan_with_sdnq(target.checkpoint, kept).specs)


def _drop_earlier(output: Path) -> None:
    """Delete what earlier runs measured."""
    with writing(output):
        (output / ABLATION_NAME).unlink(missing_ok=True)
        shutil.rmtree(output / IMAGES_FOLDER, ignore_errors=True)
    work_folder(output).remove()


def _shown(variant: Mapping[str, Any]) -> dict[str, Any]:
    """A variant as ``--json`` shows it."""
    images = variant.get("images", {}).get("summary", {})
    return {
        "name": variant["name"],
        "bytes": variant["bytes"],
        "quantized_modules": variant["quantized_modules"],
        "sqnr_db": variant["weights"]["sqnr_db"],
        "velocity_error": variant.get("velocity", {}).get("error"),
        "periodic_grid_added": images.get("periodic_grid_added"),
        "cer": images.get("cer"),
    }
