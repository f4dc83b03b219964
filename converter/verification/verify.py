"""A verification: headers first, then the checks that options ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from converter.checkpoint.components import PipelineComponent, footprints
from converter.checkpoint.files import read_json
from converter.checkpoint.header import TensorEntry
from converter.checkpoint.source import (
    DENOISERS,
    PIPELINE_INDEX,
    Checkpoint,
    SourceTensor,
    open_checkpoint,
    pipeline_components,
)
from converter.console import SILENT, Reporter
from converter.conversion.planning.plan import Plan
from converter.conversion.planning.prediction import predict_plan
from converter.conversion.recipe.recipe import Recipe, find_recipe
from converter.conversion.release.manifest import CONFIG_NAME, MANIFEST_NAME
from converter.errors import TEXT_LIMIT, InputError, UsageError, printable
from converter.hub.addresses import HubAddress, is_address, parse_address
from converter.libraries import COMPARING_BYTES, require_library_memory
from converter.models.lens.layout import CLASS_NAME, LensConfig, lens_tensors
from converter.verification.audit import Audit
from converter.verification.checks import check_headers
from converter.verification.components import check_components, other_components
from converter.verification.configuration import differing_options
from converter.verification.manifest import check_sums, files_below
from converter.verification.notes import unusual
from converter.verification.report import Check, VerifyReport, list_problems


def verify(
    path: Path | str,
    *,
    component: str | None = None,
    against: Path | None = None,
    variant: str | None = None,
    recipe: str | Recipe | None = None,
    checksums: bool = False,
    load: bool = False,
    fail_under_sqnr: float | None = None,
    reporter: Reporter = SILENT,
) -> VerifyReport:
    """Check whether a quantized checkpoint is what it should be.

    Headers and small files are always checked, without torch. Options ask for other checks.

    Args:
        path: a component folder, a pipeline repo or a ``.safetensors`` file; or ``hf://OWNER/NAME`` with an optional
            ``@REVISION``, of which only headers and small files are read.
        component: which component of a pipeline repo; its denoiser by default.
        against: the checkpoint that it was made from, to compare every weight; for a repo on the Hub the release on
            disk, to compare every file.
        variant: the variant of the weights in ``against`` that was converted.
        recipe: a recipe, its name or its file; the checkpoint must be its result.
        checksums: whether to compare every file with the manifest.
        load: whether to load it with SDNQ's loader and with its library.
        fail_under_sqnr: least signal-to-quantization-noise ratio of a module, in dB; needs ``against``.
        reporter: shows progress.

    Raises:
        InputError: a file is missing or malformed, or options contradict each other.
        ResourceError: the machine lacks memory or a package.
        HubError: the Hub refuses, or cannot be reached.
    """
    is_remote = isinstance(path, str) and is_address(path)
    if variant is not None and (against is None or is_remote):
        raise UsageError("--variant needs --against SOURCE", "It chooses the weights of the source.")
    if isinstance(path, str) and is_remote:
        if checksums or load or fail_under_sqnr is not None:
            raise UsageError(
                f"{path}: --checksums, --load and --fail-under-sqnr need the weights, which stay on the Hub",
                "Download the repo with `hf download OWNER/NAME --local-dir DIR`, then verify DIR.",
            )
        return _verify_remote(parse_address(path), component, against, recipe, reporter)
    path = Path(path)
    if fail_under_sqnr is not None and against is None:
        raise UsageError(
            "--fail-under-sqnr needs --against SOURCE", "The ratio compares the weights with their source."
        )
    audit = Audit(path, component=component)
    source = _open_source(against, audit, variant) if against is not None else None
    extra: list[Check] = []
    fidelity, notes = {}, list[str]()
    if recipe is not None:
        extra.append(_check_recipe(audit, source, recipe))
    if checksums:
        if audit.manifest is None and not audit.manifest_problem:
            raise UsageError(f"{audit.root}: has no {MANIFEST_NAME} to compare checksums with")
        total = sum(files_below(audit.root).values())
        with reporter.progress("hashing", total) as shown:
            extra.append(check_sums(audit, shown))
    if source is not None:
        require_library_memory(COMPARING_BYTES)
        from converter.verification.fidelity import measure_fidelity

        measured = measure_fidelity(audit, source, reporter=reporter, fail_under_sqnr=fail_under_sqnr)
        extra += measured.checks
        fidelity = measured.to_dict()
    if load:
        require_library_memory()
        from converter.verification.loading import check_loading

        checks, notes = check_loading(audit)
        extra += checks
    return make_report(audit, extra, fidelity, notes, () if component else other_components(audit))


def make_report(
    audit: Audit,
    extra: Sequence[Check] = (),
    fidelity: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    others: Sequence[PipelineComponent] = (),
) -> VerifyReport:
    """Check headers and small files, and add the results of other checks.

    Args:
        audit: of the checkpoint.
        extra: other checks that were made.
        fidelity: how far the weights are from their source; empty or None if there was none to compare with.
        notes: what other checks found that is unusual.
        others: the other components of the pipeline, to check as well.
    """
    found = [*notes, *unusual(audit, is_compared=bool(fidelity))]
    found += [f"{other.name}: {note}" for other in others for note in other.notes]
    checked = [check_components(audit, others)] if others else []
    return VerifyReport(
        class_name=audit.class_name,
        checks=(*check_headers(audit), *checked, *extra),
        notes=tuple(printable(note, TEXT_LIMIT) for note in found),
        tensors=len(audit.checkpoint.tensors),
        bytes_by_dtype=audit.checkpoint.bytes_by_dtype,
        total_bytes=audit.checkpoint.total_bytes,
        parameters=audit.parameters,
        quantized_modules=len(audit.modules),
        families=audit.footprints(),
        other_components=footprints(others),
        fidelity=fidelity or {},
    )


def _verify_remote(
    address: HubAddress, component: str | None, against: Path | None, recipe: str | Recipe | None, reporter: Reporter
) -> VerifyReport:
    """Check a repo on the Hub by its headers, its small files and the Hub's records."""
    from converter.hub.shadow import shadowed
    from converter.verification.remote import check_local, check_records, local_sizes, remote_report

    # Faults of the local folder are reported before the first request.
    sizes = local_sizes(against) if against is not None else {}
    with shadowed(address, component, has_others=component is None) as shadow:
        audit = Audit(shadow.folder, component=component)
        others = () if component else other_components(audit, reads_headers=False)
        extra = [_check_recipe(audit, None, recipe)] if recipe is not None else []
        extra.append(check_records(shadow, audit.manifest))
        if against is not None:
            with reporter.progress("hashing", sum(sizes.values())) as shown:
                listed = {*audit.manifest.files, MANIFEST_NAME} if audit.manifest is not None else None
                extra.append(check_local(shadow.repo, against, sizes, listed, shown))
        return remote_report(make_report(audit, extra, others=others), shadow)


def _open_source(path: Path, audit: Audit, variant: str | None) -> Checkpoint:
    """Open the source: a component folder or a pipeline repo, whichever the quantized checkpoint is.

    Raises: what ``open_checkpoint`` raises.
    """
    if not (path / PIPELINE_INDEX).is_file():
        return open_checkpoint(path, variant=variant)
    if audit.checkpoint.component:
        return open_checkpoint(path, component=audit.checkpoint.component, variant=variant)
    components = pipeline_components(path) if audit.class_name else {}
    candidates = [name for name in components if _class_in(path / name) == audit.class_name]
    # Two components can have the same class; then the name of the folder decides.
    preferred = (audit.checkpoint.folder.resolve().name, *DENOISERS, *candidates)
    chosen = next((name for name in preferred if name in candidates), None)
    return open_checkpoint(path, component=chosen, variant=variant)


def _class_in(folder: Path) -> str:
    """The class in a component's config; empty if it has none."""
    try:
        config = read_json(folder / CONFIG_NAME)
    except InputError:
        return ""
    return Checkpoint(folder=folder, headers=(), tensors={}, config=config, stem="").class_name


def _check_recipe(audit: Audit, source: Checkpoint | None, recipe: str | Recipe) -> Check:
    """Compare names, dtypes and shapes with the result of a recipe, in both directions."""
    chosen = recipe if isinstance(recipe, Recipe) else find_recipe(recipe, audit.class_name)
    plan = _plan_recipe(audit, source, chosen)
    planned = {spec.name: (spec.dtype, spec.shape) for spec in plan.specs}
    found = {name: (tensor.entry.dtype, tensor.entry.shape) for name, tensor in audit.checkpoint.tensors.items()}
    problems = [f"{name} is missing" for name in sorted(planned.keys() - found.keys())]
    problems += [f"{name} is unexpected" for name in sorted(found.keys() - planned.keys())]
    for name in sorted(planned.keys() & found.keys()):
        if planned[name] != found[name]:
            (dtype, shape), (wanted, wanted_shape) = found[name], planned[name]
            problems.append(f"{name} is {dtype} {list(shape)}, should be {wanted} {list(wanted_shape)}")
    # A predicted plan has no quantization config; the recipe's options are its part of it.
    options = plan.quantization_config or chosen.options
    known = {key: value for key, value in options.items() if key != "sdnq_version"}
    different = differing_options(known, audit.config, only_shared=True)
    if different:
        problems.insert(0, f"the quantization config disagrees with the recipe on {different}")
    return list_problems("recipe", problems, f"all {len(planned)} tensors are as recipe {chosen.name} makes them")


def _plan_recipe(audit: Audit, source: Checkpoint | None, recipe: Recipe) -> Plan:
    if recipe.is_data_dependent:
        raise UsageError(f"--recipe cannot check {recipe.name}: its dtypes depend on the weights", "Omit --recipe.")
    model = source
    if model is None:
        if audit.class_name != CLASS_NAME:
            raise UsageError("--recipe needs --against SOURCE for a class other than Lens")
        if not audit.checkpoint.config:
            raise UsageError("--recipe needs --against SOURCE for weights without a config.json")
        model = _unquantized_lens(audit.checkpoint)
    plan = predict_plan(model, recipe)
    if plan is None:
        from converter.conversion.planning.planner import plan_with_sdnq

        plan = plan_with_sdnq(model, recipe)
    return plan


def _unquantized_lens(checkpoint: Checkpoint) -> Checkpoint:
    """The headers that the unquantized form of a Lens checkpoint has."""
    tensors = {
        name: SourceTensor(TensorEntry(name, "F32", shape, 0, 0), checkpoint.folder, 0)
        for name, shape in lens_tensors(LensConfig.from_dict(checkpoint.config))
    }
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    return replace(checkpoint, tensors=tensors, config=config)
