"""A conversion from beginning to end, one plain value a step.

request -> plan, predicted or SDNQ's own -> work -> staging -> outcome of the workers, while SDNQ plans
-> comparison of the plans -> companions, configs, manifest -> one rename
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from converter.checkpoint.components import footprints
from converter.checkpoint.folders import remove_all_but
from converter.checkpoint.staging import Staging
from converter.checkpoint.writer import writing
from converter.console import SILENT, Reporter
from converter.conversion.execution.execute import Outcome, execute
from converter.conversion.execution.jobs import Work, kinds_of, make_work, memory_budget
from converter.conversion.kernels.host import HOST, Host
from converter.conversion.options import ConvertOptions
from converter.conversion.planner_process import PlanAnswer, PlannerProcess, plan_here
from converter.conversion.planning.methods import OWN_KINDS
from converter.conversion.planning.prediction import plans_agree, predict_plan
from converter.conversion.planning.rules import MISREAD_SCALES
from converter.conversion.preflight import check_space, existing_parent, refuse_overlap
from converter.conversion.preview import foresee, pieces_bytes
from converter.conversion.recipe.recipe import Recipe
from converter.conversion.release.companions import Companion, bring_companion, find_companions, plain_index
from converter.conversion.release.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    QUANTIZATION_CONFIG_NAME,
    SUMMARY_NAME,
    ReleaseFile,
    encode_json,
    write_file,
)
from converter.conversion.release.record import conversion_manifest, quantization_summary
from converter.conversion.release.replacing import REPLACING_CHECKPOINTS
from converter.conversion.release.selection import Selection, select_files
from converter.conversion.report import ConvertReport, published_report
from converter.conversion.request import Request, open_request
from converter.errors import (
    DeviceError,
    InputError,
    MalformedCheckpoint,
    NonFiniteWeight,
    RecipeError,
    ResourceError,
    UnsupportedCheckpoint,
)
from converter.libraries import is_loaded, require_library_memory
from converter.memory import peak_rss_bytes, require_free_memory

if TYPE_CHECKING:
    from converter.conversion.kernels.devices import Device

#: Memory, besides that for pieces, without which a conversion ends in a kill while SDNQ plans, in bytes: the least that
#: was measured with the versions in constraints.txt, rounded down. The predicted peak counts more: pages of libraries,
#: which the system can drop, and two processes, which need not have their peaks at the same time.
LEAST_BYTES = 280_000_000


def convert(
    source: Path,
    output: Path,
    recipe: str | Recipe | None = None,
    options: ConvertOptions | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ConvertReport:
    """Convert a checkpoint to SDNQ's format, streamed and exactly as SDNQ itself would.

    Args:
        source: a component folder, a pipeline repo or a ``.safetensors`` file.
        output: the folder to make; it appears as a whole or not at all.
        recipe: a recipe, its name or its file; the default for the model's class when None.
        options: how to convert.
        reporter: shows progress and notes.

    Raises:
        InputError: the source cannot be converted, or the output cannot be written.
        ResourceError: disk, memory, a device or a package is missing.
        KeyboardInterrupt: the user stopped it; the same call continues later.
    """
    started = time.monotonic()
    request = open_request(source, recipe, options or ConvertOptions())
    refuse_overlap(request.checkpoint, output)
    replacing = REPLACING_CHECKPOINTS if request.options.overwrite else None
    with _device(request.options) as device, Staging(output, request.identity(device.name), replacing) as staging:
        if staging.was_published:
            staging.open()
            staging.discard()
            return published_report(output, request, time.monotonic() - started)
        with _planning(request) as (answer, planner):
            released = _release(request, staging, answer, planner, reporter, device)
    elapsed = time.monotonic() - started
    plan, outcome = released.answer.plan, released.outcome
    return ConvertReport(
        output=output,
        files=released.files,
        bytes_by_dtype=plan.bytes_by_dtype,
        tensors=len(plan.tensors),
        recipe=request.recipe.name,
        elapsed_s=elapsed,
        bytes_read_per_s=outcome.bytes_read / elapsed,
        peak_rss_bytes=peak_rss_bytes() + released.answer.peak_rss_bytes,
        assumed_config=plan.assumed_config,
        resumed_tensors=outcome.resumed_tensors,
        nonfinite=outcome.nonfinite,
        source_bytes=request.checkpoint.total_bytes,
        other_components=footprints(request.others),
    )


def _device(options: ConvertOptions) -> AbstractContextManager[Host | Device]:
    """Open the device for a block; for the CPU, torch is not imported."""
    if options.is_on_cpu:
        return nullcontext(HOST)
    require_library_memory()
    from converter.conversion.kernels.devices import opened_device

    return opened_device(options.device)


@dataclass(frozen=True)
class _Released:
    """A finished release, with its plan and the outcome of the work."""

    answer: PlanAnswer
    outcome: Outcome
    files: tuple[ReleaseFile, ...]


@contextmanager
def _planning(request: Request) -> Iterator[tuple[PlanAnswer, PlannerProcess | None]]:
    """The plan to begin with; if it is predicted, also the process in which SDNQ plans during the block."""
    # A prediction saves the wait for SDNQ's import, unless SDNQ is imported already.
    predicted = None if is_loaded() else predict_plan(request.checkpoint, request.recipe)
    if predicted is None:
        yield plan_here(request), None
        return
    planner = PlannerProcess(request)
    try:
        yield PlanAnswer(predicted, kernel_agrees=True), planner
    finally:
        planner.stop()


def _release(
    request: Request,
    staging: Staging,
    answer: PlanAnswer,
    planner: PlannerProcess | None,
    reporter: Reporter,
    device: Host | Device,
) -> _Released:
    work = _work(request, answer, device)
    # Everything that can fail before a byte is written fails here.
    _refuse_misread(request, answer)
    budget = memory_budget(work, request.options.memory)
    if not is_loaded():
        require_free_memory(LEAST_BYTES + pieces_bytes(work, request.options), "this conversion")
    parent = existing_parent(staging.output)
    selection = select_files(request.checkpoint, request.others)
    companions = find_companions(selection, parent)
    check_space(staging, parent, work.layout, companions, times=2 if request.recipe.is_data_dependent else 1)
    staging.open()
    content = work.content
    finished = staging.resume(content, restart=request.options.restart)
    for note in foresee(request, answer.plan, selection):
        reporter.note(f"Note: {note}.")
    with _discarding(staging, reporter, resumed=bool(finished)):
        bytes_read = 0
        if request.recipe.is_data_dependent:
            # Imported here: it imports torch, which a predicted conversion does without.
            from converter.conversion.execution.deciding import decide

            decision = decide(request, work, staging, finished, reporter, device)
            finished, bytes_read = decision.finished, decision.bytes_read
            answer = replace(answer, plan=decision.plan)
            work = _work(request, answer, device, decision.spooled)
        if finished and not _are_complete(staging.release / request.checkpoint.component, work):
            finished = staging.forget_slots(content, finished)
        outcome = execute(request, work, staging, finished, budget, reporter, device)
        bytes_read += outcome.bytes_read
        if planner is not None:
            actual = planner.answer() or plan_here(request)
            if not (actual.kernel_agrees and plans_agree(answer.plan, actual.plan)):
                reporter.note("SDNQ's plan differs from the prediction; the conversion starts over with SDNQ's plan")
                work = _work(request, actual, device)
                staging.begin(work.content)
                budget = memory_budget(work, request.options.memory)
                outcome = execute(request, work, staging, {}, budget, reporter, device)
                bytes_read += outcome.bytes_read
            answer = actual
        request.refuse_changed()
        files = _write_release(
            request, staging, replace(work, plan=answer.plan), selection, companions, outcome, reporter, device
        )
        # The other components have been copied since.
        request.refuse_changed()
        staging.publish()
    return _Released(answer, replace(outcome, bytes_read=bytes_read), files)


def _work(
    request: Request, answer: PlanAnswer, device: Host | Device, spooled: Mapping[str, Path] | None = None
) -> Work:
    use_fused = answer.kernel_agrees
    if use_fused and not isinstance(device, Host):
        # Imported here: it imports torch.
        from converter.conversion.kernels.selfcheck import device_agrees

        use_fused = device_agrees(device, round_weights=not request.options.from_float32)
    return make_work(request, answer.plan, use_fused=use_fused, spooled=spooled)


def _decisive_device(request: Request, work: Work, device: Host | Device) -> str:
    """The name of the device if SDNQ's functions ran there; the bytes of lensconv's kernel do not depend on it."""
    uses_sdnq = request.recipe.is_data_dependent or kinds_of(work.jobs) - OWN_KINDS
    return device.name if uses_sdnq and not request.options.is_on_cpu else ""


def _refuse_misread(request: Request, answer: PlanAnswer) -> None:
    """Refuse a result that no loader would read correctly, unless the user wants it.

    Raises:
        RecipeError: it is refused.
    """
    if answer.plan.has_misread_scales and not request.options.force:
        raise RecipeError(
            f"recipe {request.recipe.name}",
            MISREAD_SCALES,
            "Set these options in [[rules]], which loaders read; or convert with --force.",
        )


def _are_complete(folder: Path, work: Work) -> bool:
    """Whether all files of an interrupted run exist at their full sizes."""
    files = [(folder / file.name, file.total_bytes) for file in work.layout.files]
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


@contextmanager
def _discarding(staging: Staging, reporter: Reporter, *, resumed: bool) -> Iterator[None]:
    """Remove all output when the work fails, unless the next run can continue it.

    A bad source stays bad, so what was made from it is useless. An unreadable disk, a taken output or a shortage
    may pass: then what is finished is kept. But if the first run lacks disk space or memory, it frees what it has used.
    """
    try:
        yield
    except (MalformedCheckpoint, NonFiniteWeight, RecipeError, UnsupportedCheckpoint):
        staging.discard()
        raise
    except (InputError, ResourceError) as error:
        if isinstance(error, ResourceError) and not (resumed or isinstance(error, DeviceError)):
            staging.discard()
        else:
            reporter.note(f"What is finished is kept in {staging.folder.name}; the same command continues from there.")
        raise


def _write_release(
    request: Request,
    staging: Staging,
    work: Work,
    selection: Selection,
    companions: list[Companion],
    outcome: Outcome,
    reporter: Reporter,
    device: Host | Device,
) -> tuple[ReleaseFile, ...]:
    """Write everything except the weights; returns all files of the release."""
    checkpoint, plan, layout, folder = request.checkpoint, work.plan, work.layout, staging.release
    remove_all_but(folder, {folder / checkpoint.component / file.name for file in layout.files})
    prefix = checkpoint.prefix
    with writing(folder):
        component = [
            ReleaseFile(prefix + file.name, file.total_bytes, outcome.digests[file.name]) for file in layout.files
        ]
        component.append(write_file(folder, prefix + CONFIG_NAME, encode_json(plan.config)))
        component.append(write_file(folder, prefix + QUANTIZATION_CONFIG_NAME, encode_json(plan.quantization_config)))
        if layout.index:
            component.append(write_file(folder, prefix + layout.index_name, layout.index))
        total = sum(companion.bytes for companion in companions)
        with reporter.progress("other components", total) as progress:
            others = [bring_companion(companion, folder, progress) for companion in companions]
        others += [write_file(folder, name, plain_index(index)) for name, index in selection.indexes.items()]
        summary = quantization_summary(plan, checkpoint, component)
        summary_content = (json.dumps(summary, indent=2) + "\n").encode()
        files = [*component, *others, write_file(folder, SUMMARY_NAME, summary_content)]
        manifest = conversion_manifest(
            plan,
            checkpoint,
            request.recipe,
            files,
            quantize_from=request.options.quantize_from,
            shard_bytes=request.options.shard_bytes,
            nonfinite=outcome.nonfinite,
            device=_decisive_device(request, work, device),
            headers={prefix + file.name: hashlib.sha256(file.header).hexdigest() for file in layout.files},
        )
        return *files, write_file(folder, MANIFEST_NAME, manifest.encode())
