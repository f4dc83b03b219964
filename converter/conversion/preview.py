"""The result of a conversion, computed in advance from headers and the model's config alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from converter.checkpoint.components import footprints
from converter.checkpoint.footprint import ComponentFootprint, WholeFootprint, whole_footprint
from converter.checkpoint.layout import Layout
from converter.checkpoint.source import DENOISERS, Checkpoint
from converter.conversion.execution.jobs import Work, element_bytes, largest_piece, make_work, memory_budget
from converter.conversion.options import ConvertOptions
from converter.conversion.planning.plan import FamilyTotals, Plan, family_totals, parameter_count
from converter.conversion.planning.prediction import predict_plan
from converter.conversion.planning.rules import MISREAD_SCALES
from converter.conversion.recipe.recipe import Recipe
from converter.conversion.release.selection import Selection, select_files
from converter.conversion.request import Request, open_request
from converter.errors import first_few, printable
from converter.hub.addresses import is_address, parse_address
from converter.libraries import require_library_memory

#: Memory of the process before the first piece, in bytes: Python with NumPy and numba, and with SDNQ's libraries.
#: Measured with the versions in constraints.txt, rounded up.
OWN_PROCESS_BYTES = 190_000_000
SDNQ_PROCESS_BYTES = 490_000_000
#: Additional memory of the first process where a device other than the CPU quantizes, for torch; measured likewise on
#: the CPU. What the driver of a GPU takes in main memory is not known and not counted.
TORCH_BYTES = 300_000_000
#: Additional memory for the import of a CUDA build of torch; measured with torch 2.13.0, rounded up.
CUDA_LIBRARY_BYTES = 380_000_000


@dataclass(frozen=True)
class PlanReport:
    """The result that a conversion would have."""

    plan: Plan
    recipe: str
    is_exact: bool
    """False when the weights decide dtypes; the sizes are then the smallest possible."""
    source_tensors: int
    source_bytes_by_dtype: Mapping[str, int]
    parameters: int
    files: tuple[tuple[str, int], ...]
    """Weight files and their index: paths inside the release, sizes in bytes."""
    families: tuple[FamilyTotals, ...]
    peak_memory_bytes: int
    """Estimated peak memory of all processes of a conversion together."""
    notes: tuple[str, ...] = ()
    other_components: tuple[ComponentFootprint, ...] = ()
    """Models of the pipeline that stay as they are."""
    place: str = ""
    """The repo on the Hub at the commit that was read; empty when the source is on disk."""

    @property
    def source_bytes(self) -> int:
        """Footprint of the source."""
        return sum(self.source_bytes_by_dtype.values())

    @property
    def output_bytes_by_dtype(self) -> dict[str, int]:
        """Footprint of the output by dtype, the largest first."""
        return self.plan.bytes_by_dtype

    @property
    def output_bytes(self) -> int:
        """Footprint of the output."""
        return sum(self.output_bytes_by_dtype.values())

    @property
    def whole(self) -> WholeFootprint:
        """Footprint of the release with its other components."""
        return whole_footprint(self.output_bytes, self.source_bytes, self.other_components)

    def reduction(self, original: int) -> float:
        """The fraction by which the output is smaller than so many bytes."""
        return 1 - self.output_bytes / original if original else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv plan --json`` prints; sizes in bytes, reductions as fractions of one."""
        return {
            "class_name": self.plan.class_name,
            "recipe": self.recipe,
            "exact": self.is_exact,
            "assumed_config": dict(self.plan.assumed_config),
            "source": {
                **({"place": self.place} if self.place else {}),
                "tensors": self.source_tensors,
                "bytes_by_dtype": dict(self.source_bytes_by_dtype),
                "total_bytes": self.source_bytes,
                "parameters": self.parameters,
            },
            "output": {
                "tensors": len(self.plan.tensors),
                "bytes_by_dtype": self.output_bytes_by_dtype,
                "total_bytes": self.output_bytes,
                "parameters": self.parameters,
                "files": [{"name": name, "bytes": size} for name, size in self.files],
            },
            "quantized_modules": len(self.plan.modules),
            "kept_modules": len(self.plan.kept_modules),
            "modules": {
                "quantized": [module.name for module in self.plan.modules.values()],
                "kept": list(self.plan.kept_modules),
            },
            "families": [totals.to_dict() for totals in self.families],
            "reduction": {
                "vs_source": self.reduction(self.source_bytes),
                "vs_bf16": self.reduction(2 * self.parameters),
            },
            "other_components": [asdict(other) for other in self.other_components],
            "whole": self.whole.to_dict(),
            "peak_memory_bytes": self.peak_memory_bytes,
            "notes": list(self.notes),
        }


def plan(source: Path | str, recipe: str | Recipe | None = None, options: ConvertOptions | None = None) -> PlanReport:
    """Plan a conversion without reading a weight.

    SDNQ itself decides, on the model's class without weights; the sizes are those that a conversion will write, to
    the byte, unless the recipe lets the weights decide.

    Args:
        source: a component folder, a pipeline repo or a ``.safetensors`` file; or ``hf://OWNER/NAME`` with an optional
            ``@REVISION``, of which only headers and small files are read.
        recipe: a recipe, its name or its file; the default for the model's class when None.
        options: as for ``convert``.

    Raises:
        InputError: the source cannot be converted, or the recipe does not fit it.
        DependencyError: a package is missing.
        HubError: the Hub refuses, or cannot be reached.
    """
    options = options or ConvertOptions()
    if isinstance(source, str) and is_address(source):
        from converter.hub.shadow import shadowed

        with shadowed(parse_address(source), options.component, options.variant) as shadow:
            report = _plan(shadow.folder, recipe, options, reads_headers=False)
        return replace(report, place=str(shadow.repo.address))
    return _plan(Path(source), recipe, options)


def _plan(
    source: Path, recipe: str | Recipe | None, options: ConvertOptions, *, reads_headers: bool = True
) -> PlanReport:
    require_library_memory()
    from converter.conversion.planning.planner import plan_with_sdnq

    request = open_request(source, recipe, options, reads_headers=reads_headers)
    checkpoint = request.checkpoint
    selection = select_files(checkpoint, request.others)
    made = plan_with_sdnq(checkpoint, request.recipe)
    work = make_work(request, made)
    return PlanReport(
        plan=made,
        recipe=request.recipe.name,
        is_exact=not request.recipe.is_data_dependent,
        source_tensors=len(checkpoint.tensors),
        source_bytes_by_dtype=checkpoint.bytes_by_dtype,
        parameters=parameter_count(made, checkpoint),
        files=_listed(work.layout, checkpoint),
        families=family_totals(made, checkpoint),
        peak_memory_bytes=predict_peak(
            work,
            options,
            has_planner=predict_plan(checkpoint, request.recipe) is not None,
        ),
        notes=foresee(request, made, selection),
        other_components=footprints(request.others),
    )


def predict_peak(work: Work, options: ConvertOptions, *, has_planner: bool) -> int:
    """Estimate the peak memory of a conversion, in bytes.

    Args:
        work: what to do.
        options: how to do it.
        has_planner: whether SDNQ plans in a process of its own; if not, it works in this one.

    Raises:
        MemoryLimitError: a tensor needs more than the user allows.
    """
    import torch

    processes = SDNQ_PROCESS_BYTES + (CUDA_LIBRARY_BYTES if torch.version.cuda else 0)
    if has_planner:
        processes += OWN_PROCESS_BYTES
        if not options.is_on_cpu:
            processes += TORCH_BYTES + (CUDA_LIBRARY_BYTES if torch.version.cuda else 0)
    return processes + pieces_bytes(work, options)


def pieces_bytes(work: Work, options: ConvertOptions) -> int:
    """The most memory that weights and results take at one time, in bytes; arguments as for ``predict_peak``."""
    in_flight = max(
        (
            min(job.tensor.entry.bytes, largest_piece(options)) // element_bytes(job.tensor) * job.working_bytes
            for job in work.jobs
        ),
        default=0,
    )
    return min(options.workers * max(in_flight, work.needed_bytes), memory_budget(work, options.memory))


def _listed(layout: Layout, checkpoint: Checkpoint) -> tuple[tuple[str, int], ...]:
    prefix = checkpoint.prefix
    files = [(prefix + file.name, file.total_bytes) for file in layout.files]
    if layout.index:
        files.append((prefix + layout.index_name, len(layout.index)))
    return tuple(files)


def foresee(request: Request, plan: Plan, selection: Selection) -> tuple[str, ...]:
    """What a user should know before a conversion, besides sizes.

    Args:
        request: what to convert.
        plan: what it becomes.
        selection: the files of the source that are copied.
    """
    recipe, checkpoint = request.recipe, request.checkpoint
    notes = []
    if plan.assumed_config:
        values = ", ".join(f"{name} {value}" for name, value in plan.assumed_config.items())
        notes.append(f"no config.json names the model's class; assumed from microsoft/Lens: {values}")
    if checkpoint.removed_prefix:
        notes.append(
            f"the names of all tensors of the source begin with {checkpoint.removed_prefix}; this prefix is removed"
        )
    if plan.ignored:
        listed = first_few(plan.ignored)
        notes.append(f"tensors are left out, because {plan.class_name} does not save them: {listed}")
    if plan.unloadable:
        notes.append(plan.unloadable)
    narrow = checkpoint.bytes_by_dtype.keys() & {"F16", "BF16"}
    if narrow:
        dtypes = " and ".join(sorted(narrow))
        notes.append(f"the source contains rounded weights ({dtypes}); convert the F32 original if you have it")
    if recipe.is_data_dependent:
        notes.append(
            "SDNQ chooses each dtype after it has read the weight (use_dynamic_quantization); "
            "the output may be larger than planned"
        )
    if recipe.is_random:
        notes.append(f"SDNQ uses random numbers for this recipe; their seed is {recipe.seed}")
    if recipe.depends_on_threads:
        notes.append("the last bits of an SVD depend on the number of threads, which OMP_NUM_THREADS sets")
    if plan.has_misread_scales:
        notes.append(MISREAD_SCALES + ("" if request.options.force else "; convert refuses this without --force"))
    return (*notes, *_about_others(request), *selection.notes)


def _about_others(request: Request) -> Iterator[str]:
    """What a user should know about the components that stay as they are."""
    converted = request.checkpoint
    for other in request.others:
        name = printable(other.name)
        yield from (f"{name}: {printable(note)}" for note in other.notes)
        is_numbered = re.fullmatch(rf"(?:{'|'.join(DENOISERS)})_\d+", other.name)
        if not (other.is_model and (is_numbered or other.class_name == converted.class_name)):
            continue
        if other.quantization:
            method = printable(other.quantization, 40)
            yield f"{name} ({printable(other.class_name)}) stays as it is; it is quantized already ({method})"
        else:
            yield (
                f"{name} ({printable(other.class_name)}) stays as it is; to convert it as well, convert the result "
                f"with --component {name}"
            )
