"""A conversion from beginning to end: plan, stage, execute, publish.

open the source -> predict the plan, or make it -> stage -> execute while SDNQ plans beside it
    -> compare the plans -> companions, configs, manifest -> one rename
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter._version import __version__
from converter.checkpoint.folders import remove_all_but
from converter.checkpoint.header import changed_since
from converter.checkpoint.layout import Layout, lay_out
from converter.checkpoint.source import count_bytes_by_dtype, open_checkpoint
from converter.checkpoint.staging import SPOOLED, Staging
from converter.checkpoint.writer import SlotWriter, write_error
from converter.console import SILENT, Reporter
from converter.conversion.execution.hashing import FollowingHasher
from converter.conversion.execution.jobs import DEFAULT_BUDGET, Job, KeepJob, QuantizeJob, make_jobs, needed_budget
from converter.conversion.execution.workers import Numerics, WorkerPool
from converter.conversion.kernels import fused
from converter.conversion.options import ConvertOptions
from converter.conversion.planner_process import PlanAnswer, PlannerProcess, PlanRequest
from converter.conversion.planning.methods import Kind
from converter.conversion.planning.plan import Plan
from converter.conversion.planning.prediction import plans_agree, predict_plan
from converter.conversion.preflight import check_space, existing_parent, refuse_overlap
from converter.conversion.preview import foresee
from converter.conversion.recipe.recipe import Recipe, choose_recipe
from converter.conversion.release.companions import Companion, bring_companion, find_companions
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
from converter.conversion.release.replacing import refuse_what_is_no_checkpoint
from converter.conversion.report import ConvertReport, published_report
from converter.errors import (
    InputError,
    MalformedCheckpoint,
    MemoryLimitError,
    NonFiniteWeight,
    RecipeError,
    ResourceError,
    UnsupportedCheckpoint,
)
from converter.libraries import is_loaded, library_threads, package_versions, quantization_environment
from converter.memory import peak_rss_bytes


def _say_nothing(_: str) -> None:
    """What becomes of notes that nobody wants."""


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
        ResourceError: disk, memory, a device or a package is lacking.
        KeyboardInterrupt: the user called it off; the same call goes on later.
    """
    return _Conversion(source, output, recipe, options or ConvertOptions(), reporter).run()


class _Conversion:
    def __init__(
        self,
        source: Path,
        output: Path,
        recipe: str | Recipe | None,
        options: ConvertOptions,
        reporter: Reporter,
    ) -> None:
        self._started = time.monotonic()
        self._options = options
        self._reporter = reporter
        self._output = output
        self._path = source
        self._bytes_read = 0
        self._checkpoint = open_checkpoint(source, component=options.component)
        self._recipe = choose_recipe(recipe, self._checkpoint, options.settings)
        self._numerics = Numerics(
            from_float32=options.quantize_from == "float32",
            allow_nonfinite=options.allow_nonfinite,
            device=options.device,
        )
        refuse_overlap(self._checkpoint, output)
        if not self._on_cpu:
            from converter.conversion.kernels.sdnq import open_device

            open_device(options.device)

    def run(self) -> ConvertReport:
        refuse_replacing = refuse_what_is_no_checkpoint if self._options.overwrite else None
        staging = Staging(self._output, self._identity(), refuse_replacing)
        with staging:
            if staging.was_published:
                staging.open()
                staging.discard()
                return published_report(self._output, self._recipe.name, time.monotonic() - self._started)
            # A prediction saves the wait for SDNQ's import, unless somebody has waited already.
            hurry = self._on_cpu and not is_loaded()
            predicted = predict_plan(self._checkpoint, self._recipe) if hurry else None
            if predicted is None:
                return self._stage(staging, self._plan_here(), None)
            planner = PlannerProcess(PlanRequest(self._path, self._options.component, self._recipe))
            try:
                return self._stage(staging, PlanAnswer(predicted, kernel_agrees=True), planner)
            finally:
                planner.stop()

    @property
    def _on_cpu(self) -> bool:
        """Whether weights are quantized on the CPU, where lensconv's kernel runs."""
        return self._options.device == "cpu"

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the output; a run that was interrupted goes on only if all of it is the same."""
        options = self._options
        return {
            "source": [[header.file.name, header.sha256, *header.stamp] for header in self._checkpoint.headers],
            "config": self._checkpoint.config,
            "recipe": repr(self._recipe),
            "options": [options.component, options.quantize_from, options.shard_bytes, options.device],
            "nonfinite": options.allow_nonfinite,
            "versions": {"lensconv": __version__, **package_versions()},
            "environment": quantization_environment(),
            # A factorisation gives other bits on another number of threads.
            "threads": library_threads() if self._recipe.depends_on_threads else 0,
        }

    def _plan_here(self) -> PlanAnswer:
        """Plan with SDNQ in this process."""
        # Imported here: it brings torch along, which a predicted conversion does without.
        from converter.conversion.kernels.selfcheck import kernel_agrees
        from converter.conversion.planning.planner import plan_with_sdnq

        plan = plan_with_sdnq(self._checkpoint, self._recipe)
        return PlanAnswer(plan, kernel_agrees(plan))

    def _stage(self, staging: Staging, answer: PlanAnswer, planner: PlannerProcess | None) -> ConvertReport:
        layout, jobs = self._lay_out(answer, {})
        # What can fail without a byte written fails here.
        budget = self._budget(jobs)
        parent = existing_parent(self._output)
        companions = find_companions(self._checkpoint, parent)
        check_space(staging, parent, layout, companions, times=2 if self._recipe.is_data_dependent else 1)
        staging.open()
        content = _content(layout, jobs)
        finished = staging.resume(content, restart=self._options.restart)
        for remark in foresee(self._recipe, self._checkpoint):
            self._reporter.note(f"Note: {remark}.")
        with self._discarding(staging, resumed=bool(finished)):
            if self._recipe.is_data_dependent:
                # Imported here and in _decide: it brings torch along, which a predicted conversion does without.
                from converter.conversion.execution.deciding import spool_is_whole

                if not spool_is_whole(answer.plan, staging, finished):
                    staging.begin(content)
                    finished = {}
                answer, layout, jobs = self._decide(staging, answer, finished)
            folder = staging.release / self._checkpoint.component
            if finished and not all(_is_complete(folder / file.name, file.total_bytes) for file in layout.files):
                finished = staging.forget_slots(content, finished)
            outcome = self._execute(staging, answer.plan, layout, jobs, finished, budget)
            if planner is not None:
                actual = planner.answer() or self._plan_here()
                if not (actual.kernel_agrees and plans_agree(answer.plan, actual.plan)):
                    self._reporter.note("SDNQ plans otherwise than predicted; starting over with its own plan")
                    layout, jobs = self._lay_out(actual, {})
                    staging.begin(_content(layout, jobs))
                    outcome = self._execute(staging, actual.plan, layout, jobs, {}, self._budget(jobs))
                answer = actual
            self._refuse_changed()
            files = self._write_release(staging, answer.plan, layout, companions, outcome)
            staging.publish()
        return self._report(answer, files, outcome)

    def _refuse_changed(self) -> None:
        """Refuse a source that is no longer what was planned for; what was read may be of both."""
        for header in self._checkpoint.headers:
            if changed_since(header):
                raise MalformedCheckpoint(
                    header.file,
                    "was changed while it was read",
                    hint="Wait until nothing writes to it, and begin again.",
                )

    def _lay_out(self, answer: PlanAnswer, spooled: Mapping[str, Path]) -> tuple[Layout, list[Job]]:
        plan = answer.plan
        layout = lay_out(
            plan.specs, stem=plan.stem, shard_bytes=self._options.shard_bytes, index_metadata=plan.index_metadata
        )
        return layout, make_jobs(
            plan, layout, self._checkpoint, use_fused=answer.kernel_agrees and self._on_cpu, spooled=spooled
        )

    def _budget(self, jobs: list[Job]) -> int:
        """Bytes that may be in memory at a time.

        Raises:
            MemoryLimitError: a tensor needs more than the user allows.
        """
        needed = needed_budget(jobs)
        if self._options.memory is None:
            return max(DEFAULT_BUDGET, needed)
        if self._options.memory < needed:
            raise MemoryLimitError(
                f"--memory {self._options.memory} is too little: one tensor alone needs {needed} with this recipe",
                f"Allow at least --memory {needed}.",
            )
        return self._options.memory

    def _decide(
        self, staging: Staging, answer: PlanAnswer, finished: Mapping[str, Mapping[str, Any]]
    ) -> tuple[PlanAnswer, Layout, list[Job]]:
        """Let the weights decide about dtypes, then plan again with what they decided."""
        from converter.conversion.execution.deciding import decide
        from converter.conversion.planning.planner import plan_with_sdnq

        plan = answer.plan
        total = sum(self._checkpoint.tensors[source].entry.bytes for source in plan.modules)
        try:
            with self._reporter.progress("deciding", total) as progress, self._randomness(finished) as state:
                config, spooled = decide(plan, self._checkpoint, staging, finished, self._numerics, progress, state)
        except OSError as error:
            raise write_error(staging.folder, error) from error
        self._bytes_read += sum(
            self._checkpoint.tensors[source].entry.bytes for source in plan.modules if SPOOLED + source not in finished
        )
        answer = PlanAnswer(plan_with_sdnq(self._checkpoint, self._recipe, config), answer.kernel_agrees)
        return answer, *self._lay_out(answer, spooled)

    def _execute(
        self,
        staging: Staging,
        plan: Plan,
        layout: Layout,
        jobs: list[Job],
        finished: Mapping[str, Mapping[str, Any]],
        budget: int,
    ) -> _Outcome:
        """Fill all slots, and hash the files behind the workers."""
        is_random = self._recipe.is_random and not self._recipe.is_data_dependent
        if is_random:
            # SDNQ draws random numbers in the order of the modules; kept tensors draw none.
            order = {source: number for number, source in enumerate(plan.modules)}
            jobs = sorted(jobs, key=lambda job: order.get(job.tensor.entry.name, len(order)))
        folder = staging.release / self._checkpoint.component
        todo = [job for job in jobs if job.tensor.entry.name not in finished]
        done = [job for job in jobs if job.tensor.entry.name in finished]
        if Kind.FUSED in _kinds(todo):
            fused.compile_kernels(round_weights=not self._numerics.from_float32)
        total = sum(job.tensor.entry.bytes for job in jobs)
        with SlotWriter(folder, layout) as writer, self._reporter.progress("converting", total) as progress:
            hasher = FollowingHasher(folder, layout)
            try:
                hasher.start()
                for job in done:
                    hasher.finish_slot(*job.outputs)
                    progress.skip(job.tensor.entry.bytes)
                with self._randomness(finished if is_random else None) as random_state, _one_torch_thread(todo):
                    WorkerPool(staging, hasher, progress, random_state).run(
                        todo,
                        workers=1 if is_random else self._options.workers,
                        writer=writer,
                        numerics=self._numerics,
                        budget=budget,
                    )
                # The disk works while the hasher catches up.
                writer.sync()
                digests = hasher.digests()
            except OSError as error:
                raise write_error(folder, error) from error
            finally:
                hasher.stop()
        self._bytes_read += sum(
            job.tensor.entry.bytes for job in todo if isinstance(job, KeepJob) or job.spooled is None
        )
        resumed = [job for job in jobs if {job.tensor.entry.name, SPOOLED + job.tensor.entry.name} & finished.keys()]
        return _Outcome(digests, sum(len(job.outputs) for job in resumed), dict(staging.nonfinite))

    @contextmanager
    def _randomness(self, finished: Mapping[str, Mapping[str, Any]] | None) -> Iterator[Callable[[], str] | None]:
        """Seed torch's generator for the block, or set it to where an interrupted run left it.

        Yields:
            What tells the state of the generator, for the journal; None where no random numbers are drawn.
        """
        if finished is None or not self._recipe.is_random:
            yield None
            return
        from converter.conversion.kernels.sdnq import RandomState

        states = [noted["random_state"] for noted in finished.values() if "random_state" in noted]
        with RandomState(self._recipe.seed, self._options.device, states[-1] if states else None) as random_state:
            yield random_state.encode

    @contextmanager
    def _discarding(self, staging: Staging, *, resumed: bool) -> Iterator[None]:
        """Leave nothing behind when the work fails, unless the next run can go on with it.

        A bad source stays bad, so that what was made of it is of no use. A disk that cannot be read, a place that was
        taken meanwhile, a shortage may pass: what is finished is kept then, but a run that is short of something at
        its first attempt gives back what it took.
        """
        try:
            yield
        except (MalformedCheckpoint, NonFiniteWeight, RecipeError, UnsupportedCheckpoint):
            staging.discard()
            raise
        except (InputError, ResourceError) as error:
            if isinstance(error, ResourceError) and not resumed:
                staging.discard()
            else:
                self._reporter.note(
                    f"What is finished is kept in {staging.folder.name}; the same command goes on with it."
                )
            raise

    def _write_release(
        self,
        staging: Staging,
        plan: Plan,
        layout: Layout,
        companions: list[Companion],
        outcome: _Outcome,
    ) -> tuple[ReleaseFile, ...]:
        """Write everything beside the weights; returns all files of the release."""
        checkpoint, folder = self._checkpoint, staging.release
        remove_all_but(folder, {folder / checkpoint.component / file.name for file in layout.files})
        prefix = checkpoint.prefix
        try:
            component = [
                ReleaseFile(prefix + file.name, file.total_bytes, outcome.digests[file.name]) for file in layout.files
            ]
            component.append(write_file(folder, prefix + CONFIG_NAME, encode_json(plan.config)))
            component.append(
                write_file(folder, prefix + QUANTIZATION_CONFIG_NAME, encode_json(plan.quantization_config))
            )
            if layout.index:
                component.append(write_file(folder, prefix + layout.index_name, layout.index))
            others = []
            total = sum(companion.bytes for companion in companions)
            with self._reporter.progress("other components", total) as progress:
                for companion in companions:
                    others.append(bring_companion(companion, folder, progress))
            summary = quantization_summary(plan, checkpoint, component)
            summary_content = (json.dumps(summary, indent=2) + "\n").encode()
            files = [*component, *others, write_file(folder, SUMMARY_NAME, summary_content)]
            manifest = conversion_manifest(
                plan,
                checkpoint,
                self._recipe,
                files,
                quantize_from=self._options.quantize_from,
                shard_bytes=self._options.shard_bytes,
                nonfinite=outcome.nonfinite,
                headers={prefix + file.name: hashlib.sha256(file.header).hexdigest() for file in layout.files},
            )
            return *files, write_file(folder, MANIFEST_NAME, manifest.encode())
        except OSError as error:
            raise write_error(folder, error) from error

    def _report(self, answer: PlanAnswer, files: tuple[ReleaseFile, ...], outcome: _Outcome) -> ConvertReport:
        plan = answer.plan
        elapsed = time.monotonic() - self._started
        return ConvertReport(
            output=self._output,
            files=files,
            bytes_by_dtype=count_bytes_by_dtype((spec.dtype, spec.bytes) for spec in plan.specs),
            tensors=len(plan.tensors),
            recipe=self._recipe.name,
            elapsed_s=elapsed,
            bytes_read_per_s=self._bytes_read / elapsed,
            peak_rss_bytes=peak_rss_bytes() + answer.peak_rss_bytes,
            resumed_tensors=outcome.resumed_tensors,
            nonfinite=outcome.nonfinite,
        )


@dataclass(frozen=True)
class _Outcome:
    """What the workers and the hasher leave behind."""

    digests: Mapping[str, str]
    resumed_tensors: int
    nonfinite: Mapping[str, int]


def _is_complete(file: Path, size: int) -> bool:
    """Whether a file of an interrupted run is there at its full size."""
    return file.is_file() and file.stat().st_size == size


def _content(layout: Layout, jobs: list[Job]) -> str:
    """What is to be in the slots, and how it gets there, as a digest for the journal."""
    digest = hashlib.sha256()
    for file in layout.files:
        digest.update(file.header)
    for job in jobs:
        if isinstance(job, QuantizeJob):
            digest.update(f"{job.tensor.entry.name} {job.method}\n".encode())
    return digest.hexdigest()


def _kinds(jobs: list[Job]) -> set[Kind]:
    return {job.method.kind for job in jobs if isinstance(job, QuantizeJob)}


@contextmanager
def _one_torch_thread(jobs: list[Job]) -> Iterator[None]:
    """Let each worker have one thread of torch where all that SDNQ does is independent of their number."""
    kinds = _kinds(jobs)
    if Kind.ROWS not in kinds or Kind.WHOLE in kinds:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
