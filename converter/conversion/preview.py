"""The result of a conversion, computed in advance from headers and the model's config alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from converter.checkpoint.components import footprints
from converter.checkpoint.layout import Layout
from converter.checkpoint.source import Checkpoint
from converter.conversion.choosing import QUANTIZED_ROLES, choose_components, reason_left, stands_for_several
from converter.conversion.execution.jobs import element_bytes, kinds_of, largest_piece
from converter.conversion.execution.work import Work, make_work, memory_budget
from converter.conversion.fitting import plan_memory
from converter.conversion.options import ConvertOptions
from converter.conversion.plan_report import ComponentPlan, PlanReport
from converter.conversion.planning.methods import Kind
from converter.conversion.planning.plan import Plan, refuse_unmatched
from converter.conversion.planning.prediction import predict_plan
from converter.conversion.planning.rounding import choose_roundings, refuse_useless_rounding
from converter.conversion.planning.rules import MISREAD_SCALES
from converter.conversion.recipe.recipe import CALIBRATED, NEAREST, SCALE, Recipe
from converter.conversion.release.selection import Selection, select_files
from converter.conversion.request import Request, Target, open_request
from converter.errors import first_few, printable
from converter.hub.addresses import is_address, parse_address
from converter.libraries import load_library, require_library_memory
from converter.models.pipeline_fit import FitReport
from converter.models.roles import role

if TYPE_CHECKING:
    from converter.conversion.adapters.fitting import FittedAdapters
    from converter.hub.shadow import Shadow

#: Memory of the process before the first piece, in bytes: Python with NumPy and numba, and with SDNQ's libraries.
#: Measured with the versions in constraints.txt, rounded up.
OWN_PROCESS_BYTES = 190_000_000
SDNQ_PROCESS_BYTES = 540_000_000
#: Additional memory of the first process where a device other than the CPU quantizes, for torch; measured likewise on
#: the CPU. What the driver of a GPU takes in main memory is not known and not counted.
TORCH_BYTES = 300_000_000
#: Additional memory for PEFT, which diffusers imports for its models and for adapters if it is installed.
PEFT_BYTES = 60_000_000
#: Additional memory where codes are calibrated, for products and factorisations of matrices; measured with two threads.
MATRIX_LIBRARY_BYTES = 130_000_000
#: Additional memory for the import of a CUDA build of torch; measured with torch 2.13.0, rounded up.
CUDA_LIBRARY_BYTES = 380_000_000


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

        def choose(folder: Path) -> tuple[str | None, ...]:
            return choose_components(folder, options.components, options.variant, reads_headers=False)

        with shadowed(parse_address(source), choose, options.variant) as shadow:
            report = _plan(shadow.folder, recipe, options, shadow)
        return replace(report, place=str(shadow.repo.address))
    return _plan(Path(source), recipe, options)


def _plan(
    source: Path, recipe: str | Recipe | None, options: ConvertOptions, shadow: Shadow | None = None
) -> PlanReport:
    require_library_memory()
    from converter.conversion.planning.planner import plan_with_sdnq

    request = open_request(source, recipe, options, reads_headers=shadow is None, shadow=shadow)
    selection = select_files(request.checkpoints, request.others)
    plans = [plan_with_sdnq(target.checkpoint, target.recipe) for target in request.targets]
    refuse_unmatched([target.recipe for target in request.targets], plans)
    refuse_useless_rounding(request.targets, plans)
    adapters = fit_to(request)
    works = []
    for target, made in zip(request.targets, plans, strict=True):
        work = make_work(target, made, additions=adapters.additions(target.name) if adapters else {})
        # That blocks are exact is tested by a conversion; they are for almost all shapes.
        works.append(work if Kind.WHOLE in kinds_of(work.jobs) else work.with_blocks())
    main = request.main
    is_alone = len(works) == 1 and not adapters and not request.calibration
    has_planner = is_alone and predict_plan(main.checkpoint, main.recipe) is not None
    return PlanReport(
        components=tuple(
            ComponentPlan(target, work.plan, _listed(work.layout, target.checkpoint))
            for target, work in zip(request.targets, works, strict=True)
        ),
        peak_memory_bytes=max(predict_peak(work, options, adapters, has_planner=has_planner) for work in works),
        notes=foresee(request, plans, selection, adapters),
        other_components=footprints(request.others),
        memory=_memory(request, plans),
    )


def _memory(request: Request, plans: Sequence[Plan]) -> FitReport | None:
    if request.main.checkpoint.pipeline is None:
        return None
    return plan_memory(
        [(target.name, made) for target, made in zip(request.targets, plans, strict=True)], request.others
    )


def fit_to(request: Request) -> FittedAdapters | None:
    """Find out what the adapters of a request add to its targets; None without any.

    Raises: what ``fit_adapters`` raises.
    """
    if not request.adapters:
        return None
    # Imported here: it imports torch.
    from converter.conversion.adapters.fitting import fit_adapters

    return fit_adapters(request.adapters, request.checkpoints)


def predict_peak(
    work: Work, options: ConvertOptions, adapters: FittedAdapters | None = None, *, has_planner: bool
) -> int:
    """Estimate the peak memory of a conversion, in bytes.

    Args:
        work: what to do.
        options: how to do it.
        adapters: what is added to the weights; None if nothing is.
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
    if work.is_calibrated:
        processes += MATRIX_LIBRARY_BYTES
    pieces = pieces_bytes(work, options)
    if adapters is not None:
        # What was made of them leaves memory before the first piece is read, but after the test of products.
        pieces = max(pieces, adapters.held_bytes + work.check_bytes)
    model_class = getattr(load_library("diffusers"), work.plan.class_name, None)
    # Lens' class may be there, too, but does not import PEFT.
    if adapters is not None or getattr(model_class, "__module__", "").startswith("diffusers."):
        processes += PEFT_BYTES if load_library("diffusers.utils").is_peft_available() else 0
    return processes + pieces


def pieces_bytes(work: Work, options: ConvertOptions) -> int:
    """The most memory that weights and results take at one time, in bytes; arguments as for ``predict_peak``."""
    in_flight = max(
        (
            min(job.tensor.entry.bytes, largest_piece(options)) // element_bytes(job.tensor) * job.working_bytes
            + job.fixed_bytes
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


def foresee(
    request: Request, plans: Sequence[Plan], selection: Selection, adapters: FittedAdapters | None
) -> tuple[str, ...]:
    """What a user should know before a conversion, besides sizes.

    Args:
        request: what to convert.
        plans: what each target becomes.
        selection: the files of the source that are copied.
        adapters: what is added to the weights; None if nothing is.
    """
    notes = []
    is_remote = request.shadow is not None
    for target, plan in zip(request.targets, plans, strict=True):
        # Where several components are converted, a note names its own.
        where = f"{target.name}: " if len(plans) > 1 else ""
        notes += [where + note for note in _about_target(target, plan)]
        if is_remote and not target.recipe.reads_in_order:
            notes.append(
                f"{where}this recipe needs the weights in the order of the modules; they are read by ranges, "
                "and no file is compared with its sha256"
            )
    about_adapters = adapters.notes if adapters is not None else ()
    return (*notes, *about_adapters, *_about_others(request), *selection.notes)


def _about_target(target: Target, plan: Plan) -> Iterator[str]:
    """What a user should know about a component that is converted."""
    recipe, checkpoint = target.recipe, target.checkpoint
    if plan.assumed_config:
        values = ", ".join(f"{name} {value}" for name, value in plan.assumed_config.items())
        yield f"no config.json names the model's class; assumed from microsoft/Lens: {values}"
    if checkpoint.removed_prefix:
        yield f"the names of all tensors of the source begin with {checkpoint.removed_prefix}; this prefix is removed"
    if plan.ignored:
        yield f"tensors are left out, because {plan.class_name} does not save them: {first_few(plan.ignored)}"
    if plan.unloadable:
        yield plan.unloadable
    if not plan.modules:
        yield f"SDNQ quantizes nothing in {plan.class_name} with recipe {recipe.name}"
    narrow = checkpoint.bytes_by_dtype.keys() & {"F16", "BF16"}
    if narrow:
        dtypes = " and ".join(sorted(narrow))
        yield f"the source contains rounded weights ({dtypes}); convert the F32 original if you have it"
    if recipe.is_data_dependent:
        yield (
            "SDNQ chooses each dtype after it has read the weight (use_dynamic_quantization); "
            "the output may be larger than planned"
        )
    yield from _about_rounding(target, plan)
    if recipe.is_random:
        yield f"SDNQ uses random numbers for this recipe; their seed is {recipe.seed}"
    if recipe.depends_on_threads:
        what = "calibrated codes" if recipe.rounding == CALIBRATED else "the last bits of an SVD"
        yield f"{what} depend on the number of threads, which OMP_NUM_THREADS sets"
    if plan.has_misread_scales:
        yield MISREAD_SCALES + ("" if target.options.force else "; convert refuses this without --force")


def _about_rounding(target: Target, plan: Plan) -> Iterator[str]:
    """What a user should know about how codes are chosen, unless they are SDNQ's."""
    found = choose_roundings(plan, target)
    if found.method == NEAREST:
        return
    if found.method == CALIBRATED:
        yield f"codes of {len(found.modules(CALIBRATED))} modules are calibrated (rounding = {CALIBRATED})"
    if searched := found.modules(SCALE):
        why = "" if found.method == SCALE else f", as the calibration does not work for them: {first_few(searched)}"
        yield f"scales of {len(searched)} modules are searched for the least squared error (rounding = {SCALE}){why}"
    if nearest := found.modules(NEAREST):
        yield f"rounding = {found.method} does not work for modules, which get SDNQ's codes: {first_few(nearest)}"


def _about_others(request: Request) -> Iterator[str]:
    """What a user should know about the components that stay as they are."""
    wants_all = stands_for_several(request.main.checkpoint.pipeline, request.options.components)
    for other in request.others:
        name = printable(other.name)
        yield from (f"{name}: {printable(note)}" for note in other.notes)
        found = role(other.name, other.class_name)
        reason = reason_left(other)
        is_asked_for = wants_all and found in QUANTIZED_ROLES
        if other.is_model and (found == "denoiser" or is_asked_for):
            why = reason or f"to convert it as well, add --component {name}"
            yield f"{name} ({printable(other.class_name)}) stays as it is; {why}"
