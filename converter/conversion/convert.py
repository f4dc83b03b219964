"""A conversion from beginning to end, one plain value a step.

request -> for each component, its plan, predicted or SDNQ's own -> work -> staging
-> for each component, outcome of the workers, while SDNQ plans -> comparison of the plans
-> companions, configs, manifest -> one rename
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from converter.checkpoint.folders import remove_all_but
from converter.checkpoint.staging import Staging
from converter.checkpoint.writer import writing
from converter.cluster.cluster import Cluster
from converter.cluster.connection import check_address
from converter.console import SILENT, Reporter
from converter.conversion.choosing import choose_components, only_component
from converter.conversion.discarding import discarding
from converter.conversion.execution.execute import execute
from converter.conversion.execution.jobs import QuantizeJob
from converter.conversion.execution.on_nodes import opened_nodes, refuse_options, refuse_recipes
from converter.conversion.execution.products import choose_products
from converter.conversion.execution.work import Work, make_work, memory_budget
from converter.conversion.kernels.host import HOST, Host
from converter.conversion.options import ConvertOptions
from converter.conversion.planner_process import PlanAnswer
from converter.conversion.planning.methods import OWN_KINDS
from converter.conversion.planning.prediction import plans_agree
from converter.conversion.planning.rounding import refuse_useless_rounding
from converter.conversion.planning.rules import MISREAD_SCALES
from converter.conversion.plans import Plans, opened_plans
from converter.conversion.preflight import check_space, existing_parent, refuse_overlap
from converter.conversion.preview import fit_to, foresee, pieces_bytes
from converter.conversion.recipe.recipe import NEAREST, Recipe
from converter.conversion.record import Converted, conversion_manifest, quantization_summary
from converter.conversion.release.companions import (
    Companion,
    bring_companion,
    fetch_companion,
    find_companions,
    plain_index,
)
from converter.conversion.release.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    QUANTIZATION_CONFIG_NAME,
    SUMMARY_NAME,
    ReleaseFile,
    encode_json,
    write_file,
)
from converter.conversion.release.replacing import REPLACING_CHECKPOINTS
from converter.conversion.release.selection import Selection, select_files
from converter.conversion.report import ConvertReport, finished_report, published_report
from converter.conversion.request import Request, Target, open_request
from converter.errors import (
    RecipeError,
    printable,
)
from converter.hub.addresses import HubAddress, is_address, parse_address
from converter.hub.client import quiet_hub
from converter.hub.shadow import shadowed
from converter.libraries import is_loaded, load_library, require_library_memory
from converter.memory import peak_rss_bytes, require_free_memory, return_free_memory

if TYPE_CHECKING:
    from converter.conversion.adapters.fitting import FittedAdapters
    from converter.conversion.kernels.devices import Device

#: Memory, besides that for pieces, without which a conversion ends in a kill while SDNQ plans, in bytes: the least that
#: was measured with the versions in constraints.txt, rounded down. The predicted peak counts more: pages of libraries,
#: which the system can drop, and two processes, which need not have their peaks at the same time.
LEAST_BYTES = 280_000_000
#: The same where the plan was kept, so that nothing imports SDNQ.
KEPT_LEAST_BYTES = 25_000_000


def convert(
    source: Path | str,
    output: Path,
    recipe: str | Recipe | None = None,
    options: ConvertOptions | None = None,
    *,
    reporter: Reporter = SILENT,
    ray: str | None = None,
) -> ConvertReport:
    """Convert a checkpoint to SDNQ's format, streamed and exactly as SDNQ itself would.

    Args:
        source: a component folder, a pipeline repo or a ``.safetensors`` file; or ``hf://OWNER/NAME`` with an optional
            ``@REVISION``, whose weights are converted while they arrive and never on disk.
        output: the folder to make; it appears as a whole or not at all.
        recipe: a recipe, its name or its file; the default for the model's class when None.
        options: how to convert.
        reporter: shows progress and notes.
        ray: address of a cluster of Ray, on whose nodes weight files are converted, with the same bytes; ``local`` for
            one of this machine, ``auto`` for one that runs on it. None to convert in this process.

    Raises:
        InputError: the source cannot be converted, or the output cannot be written.
        ResourceError: disk, memory, a device or a package is missing, or the cluster cannot be used.
        HubError: the Hub refuses, cannot be reached, or sends other bytes than it has recorded.
        KeyboardInterrupt: the user stopped it; the same call continues later.
    """
    started = time.monotonic()
    options = options or ConvertOptions()
    if ray is not None:
        check_address(ray)
        refuse_options(options)
    if isinstance(source, str) and is_address(source):
        return _convert_remote(parse_address(source), output, recipe, options, reporter, ray, started)
    # Processes on nodes have other current folders.
    source, options = _without_others(Path(source) if ray is None else Path(source).absolute(), options)
    return _convert(open_request(source, recipe, options), output, reporter, ray, started)


def _convert_remote(
    address: HubAddress,
    output: Path,
    recipe: str | Recipe | None,
    options: ConvertOptions,
    reporter: Reporter,
    ray: str | None,
    started: float,
) -> ConvertReport:
    def choose(folder: Path) -> Sequence[str | None]:
        return choose_components(folder, options.components, options.variant, reads_headers=False)

    has_others = not options.component_only
    with shadowed(address, choose, options.variant, has_others=has_others) as shadow, quiet_hub():
        shadow.check_contents()
        shadow.repo.be_patient(reporter)
        source, options = _without_others(shadow.folder, options)
        request = open_request(source, recipe, options, reads_headers=False, shadow=shadow)
        return _convert(request, output, reporter, ray, started)


def _without_others(source: Path, options: ConvertOptions) -> tuple[Path, ConvertOptions]:
    """The folder of the component as the source, if the rest of its pipeline is left out."""
    if not options.component_only:
        return source, options
    return only_component(source, options.components, options.variant), replace(options, components=())


def _convert(request: Request, output: Path, reporter: Reporter, ray: str | None, started: float) -> ConvertReport:
    if ray is not None:
        refuse_recipes(request)
    refuse_overlap(request.checkpoints, output, [adapter.file for adapter in request.adapters])
    replacing = REPLACING_CHECKPOINTS if request.options.overwrite else None
    with _device(request.options) as device, Staging(output, request.identity(device.name), replacing) as staging:
        if staging.was_published:
            staging.open()
            staging.discard()
            return published_report(output, request, time.monotonic() - started)
        with opened_plans(request, reporter) as plans, opened_nodes(request, ray, reporter) as cluster:
            # Only the conversion refers to fitted adapters, so that it can free them.
            return _Conversion(request, staging, plans, reporter, device, cluster, fit_to(request)).run(started)


def _device(options: ConvertOptions) -> AbstractContextManager[Host | Device]:
    """Open the device for a block; for the CPU, torch is not imported."""
    if options.is_on_cpu:
        return nullcontext(HOST)
    require_library_memory()
    from converter.conversion.kernels.devices import opened_device

    return opened_device(options.device)


@dataclass
class _Conversion:
    """The work after planning, in an output folder that nobody else uses."""

    request: Request
    staging: Staging
    plans: Plans
    reporter: Reporter
    device: Host | Device
    cluster: Cluster | None
    adapters: FittedAdapters | None

    def run(self, started: float) -> ConvertReport:
        """Convert all targets, one after the other, and put the release in place.

        Args:
            started: when the conversion began, by the monotonic clock.
        """
        request, staging, options = self.request, self.staging, self.request.options
        answers = self.plans.answers
        works = self._works()
        # Everything that can fail before a byte is written fails here.
        for target, answer in zip(request.targets, answers, strict=True):
            _refuse_misread(target, answer)
        refuse_useless_rounding(request.targets, [answer.plan for answer in answers])
        budgets = [memory_budget(work, options.memory) for work in works]
        if any(work.needs_sdnq for work in works):
            # Threads must not be the first to import it; a plan that was kept did without.
            load_library("sdnq.quantizer")
        if not is_loaded():
            pieces = max(pieces_bytes(work, options) for work in works)
            least = LEAST_BYTES if self.plans.is_predicted else KEPT_LEAST_BYTES
            require_free_memory(least + pieces, "this conversion")
        parent = existing_parent(staging.output)
        selection = select_files(request.checkpoints, request.others)
        companions = find_companions(selection, parent, are_local=request.shadow is None)
        spooled = [
            work.layout for target, work in zip(request.targets, works, strict=True) if target.recipe.is_data_dependent
        ]
        held = self.adapters.held_bytes if self.adapters else 0
        check_space(staging, parent, [*(work.layout for work in works), *spooled], companions, held)
        staging.open()
        staging.resume(_content(works), restart=options.restart)
        if self.adapters is not None:
            with writing(staging.folder):
                self.adapters = self.adapters.spooled(staging.adapters)
            works = self._works()
            # Nothing refers any longer to what was moved.
            return_free_memory()
        is_resumed = any(staging.finished(target.name) for target in request.targets)
        for note in foresee(request, [answer.plan for answer in answers], selection, self.adapters):
            self.reporter.note(f"Note: {note}.")
        converted: list[Converted] = []

        def is_worth_keeping() -> bool:
            # The first of several components may have taken hours.
            return is_resumed or (len(works) > 1 and bool(converted))

        with discarding(staging, self.reporter, keeps=is_worth_keeping):
            for number, (work, budget) in enumerate(zip(works, budgets, strict=True)):
                if len(works) > 1:
                    place = f"component {number + 1} of {len(works)}"
                    self.reporter.note(f"converting {printable(request.targets[number].name)}, {place}")
                converted.append(self._convert(number, work, budget))
                request.refuse_changed()
            files = self._write_release(converted, selection, companions)
            # The other components have been copied since.
            request.refuse_changed()
            staging.publish()
        peak = peak_rss_bytes() + sum(answer.peak_rss_bytes for answer in answers)
        return finished_report(staging.output, request, converted, files, time.monotonic() - started, peak)

    def _works(self) -> list[Work]:
        pairs = zip(self.request.targets, self.plans.answers, strict=True)
        return [self._work(target, answer) for target, answer in pairs]

    def _work(self, target: Target, answer: PlanAnswer, spooled: Mapping[str, Path] | None = None) -> Work:
        use_fused = answer.kernel_agrees
        if use_fused and not isinstance(self.device, Host):
            # Imported here: it imports torch.
            from converter.conversion.kernels.selfcheck import device_agrees

            use_fused = device_agrees(self.device, round_weights=not target.options.from_float32)
        additions = self.adapters.additions(target.name) if self.adapters else {}
        work = make_work(target, answer.plan, use_fused=use_fused, spooled=spooled, additions=additions)
        return choose_products(work, target.options.memory)

    def _convert(self, number: int, work: Work, budget: int) -> Converted:
        """Fill the files of one target."""
        target, answer = self.request.targets[number], self.plans.answers[number]
        staged = self.staging.component(target.name)
        finished = staged.finished
        bytes_read = 0
        if target.recipe.is_data_dependent:
            # Imported here: it imports torch, which a predicted conversion does without.
            from converter.conversion.execution.deciding import decide

            decision = decide(target, work, staged, finished, self.reporter, self.device)
            finished, bytes_read = decision.finished, decision.bytes_read
            answer = replace(answer, plan=decision.plan)
            work = self._work(target, answer, decision.spooled)
        if finished and not _are_complete(staged.folder, work):
            finished = staged.forget(keeps_spooled=True)
        shadow = self.request.shadow
        outcome = execute(target, work, staged, finished, budget, self.reporter, self.device, shadow, self.cluster)
        bytes_read += outcome.bytes_read
        if self.plans.is_predicted:
            actual = self.plans.ask_sdnq()
            if not (actual.kernel_agrees and plans_agree(answer.plan, actual.plan)):
                self.reporter.note(
                    "SDNQ's plan differs from the prediction; the conversion starts over with SDNQ's plan"
                )
                work = self._work(target, actual)
                self.staging.begin(_content([work]))
                budget = memory_budget(work, target.options.memory)
                outcome = execute(target, work, staged, {}, budget, self.reporter, self.device, shadow, self.cluster)
                bytes_read += outcome.bytes_read
            answer = actual
        for source, damping in outcome.damped.items():
            self.reporter.note(
                f"Note: second moments of the inputs of {printable(answer.plan.modules[source].name)} are not positive "
                f"semidefinite; {damping:g} of their mean diagonal was added."
            )
        self.plans.answers[number] = answer
        device = "" if isinstance(self.device, Host) else self._decisive_device(target, work)
        outcome = replace(outcome, bytes_read=bytes_read)
        adapters = self.adapters.describe(target.name) if self.adapters else []
        return Converted(target, answer.plan, work.layout, outcome, device, adapters, shadow)

    def _decisive_device(self, target: Target, work: Work) -> str:
        """The device's name if SDNQ's functions ran there; the bytes of lensconv's kernel do not depend on it."""
        jobs = [job for job in work.jobs if isinstance(job, QuantizeJob)]
        uses_sdnq = any(job.method.rounding == NEAREST and job.method.kind not in OWN_KINDS for job in jobs)
        return self.device.name if target.recipe.is_data_dependent or uses_sdnq else ""

    def _write_release(
        self, converted: Sequence[Converted], selection: Selection, companions: Sequence[Companion]
    ) -> tuple[ReleaseFile, ...]:
        """Write everything except the weights; returns all files of the release."""
        folder = self.staging.release
        shadow = self.request.shadow
        wanted = [file.name for component in converted for file in component.weights]
        # What an interrupted run has downloaded stays, too.
        wanted += [companion.name for companion in companions] if shadow else []
        remove_all_but(folder, {folder / name for name in wanted})
        with writing(folder):
            written = [file for component in converted for file in _write_component(folder, component)]
            total = sum(companion.bytes for companion in companions)
            with self.reporter.progress("other components", total) as progress:
                if shadow is None:
                    others = [bring_companion(companion, folder, progress) for companion in companions]
                else:
                    others = shadow.at_once(
                        lambda companion: fetch_companion(companion, shadow, folder, progress),
                        companions,
                        connections=self.request.options.connections,
                        refresh=progress.refresh,
                    )
            others += [write_file(folder, name, plain_index(index)) for name, index in selection.indexes.items()]
            files = [*written, *others]
            if converted[0].is_denoiser:
                summary = json.dumps(quantization_summary(converted[0], written), indent=2) + "\n"
                files.append(write_file(folder, SUMMARY_NAME, summary.encode()))
            manifest = conversion_manifest(converted, files)
            return *files, write_file(folder, MANIFEST_NAME, manifest.encode())


def _content(works: Iterable[Work]) -> str:
    """What the files are filled with, as a digest for the journal."""
    return hashlib.sha256(" ".join(work.content for work in works).encode()).hexdigest()


def _refuse_misread(target: Target, answer: PlanAnswer) -> None:
    """Refuse a result that no loader would read correctly, unless the user wants it.

    Raises:
        RecipeError: it is refused.
    """
    if answer.plan.has_misread_scales and not target.options.force:
        raise RecipeError(
            f"recipe {target.recipe.name}",
            MISREAD_SCALES,
            "Set these options in [[rules]], which loaders read; or convert with --force.",
        )


def _are_complete(folder: Path, work: Work) -> bool:
    """Whether all files of an interrupted run exist at their full sizes."""
    files = [(folder / file.name, file.total_bytes) for file in work.layout.files]
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def _write_component(folder: Path, converted: Converted) -> list[ReleaseFile]:
    """Write the files beside the weights of a component; returns all its files."""
    plan, layout, prefix = converted.plan, converted.layout, converted.target.checkpoint.prefix
    small = {CONFIG_NAME: encode_json(plan.config), QUANTIZATION_CONFIG_NAME: encode_json(plan.quantization_config)}
    if layout.index:
        small[layout.index_name] = layout.index
    written = [write_file(folder, prefix + name, content) for name, content in small.items()]
    return [*converted.weights, *written]
