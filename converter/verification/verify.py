"""A verification: headers first, then the checks that options ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from converter.checkpoint.components import PipelineComponent, footprints
from converter.checkpoint.source import Checkpoint
from converter.console import SILENT, Reporter
from converter.conversion.adapters.choice import AdapterChoice
from converter.conversion.recipe.recipe import Recipe
from converter.conversion.release.manifest import MANIFEST_NAME
from converter.errors import TEXT_LIMIT, UsageError, printable
from converter.hub.addresses import HubAddress, is_address, parse_address
from converter.libraries import COMPARING_BYTES, require_library_memory
from converter.verification.adapters import Additions, fit, missing_adapters
from converter.verification.audit import Audit
from converter.verification.audited import choose_read, open_audits
from converter.verification.checks import check_repo
from converter.verification.components import check_components, other_components
from converter.verification.copied import compare_copied, is_quantized
from converter.verification.manifest import check_sums, files_below
from converter.verification.measures import Fidelity, join_fidelities
from converter.verification.notes import unusual
from converter.verification.origins import opened_place, parse_place
from converter.verification.recipe_check import check_recipe
from converter.verification.report import Check, VerifiedComponent, VerifyReport, about
from converter.verification.sources import choose_sources, open_sources


def verify(
    path: Path | str,
    *,
    components: Sequence[str] = (),
    against: Path | str | None = None,
    variant: str | None = None,
    recipe: str | Recipe | None = None,
    checksums: bool = False,
    load: bool = False,
    fail_under_sqnr: float | None = None,
    adapters: Sequence[AdapterChoice] = (),
    reporter: Reporter = SILENT,
) -> VerifyReport:
    """Check whether a quantized checkpoint is what it should be.

    Headers and small files are always checked, without torch. Options ask for other checks.

    Args:
        path: a component folder, a pipeline repo or a ``.safetensors`` file; or ``hf://OWNER/NAME`` with an optional
            ``@REVISION``, of which only headers and small files are read.
        components: which components of a pipeline repo; all that are quantized by default.
        against: the checkpoint that it was made from, a path or an address on the Hub, to compare every weight; for a
            repo on the Hub the release on disk, to compare every file.
        variant: the variant of the weights in ``against`` that was converted.
        recipe: a recipe, its name or its file; the checkpoint must be its result.
        checksums: whether to compare every file with the manifest.
        load: whether to load it with SDNQ's loader and with its library.
        fail_under_sqnr: least signal-to-quantization-noise ratio of a module, in dB; needs ``against``.
        adapters: LoRA adapters that were added to ``against`` before it was quantized, in this order.
        reporter: shows progress.

    Raises:
        InputError: a file is missing or malformed, or options contradict each other.
        ResourceError: the machine lacks memory or a package.
        HubError: the Hub refuses, or cannot be reached.
    """
    is_remote = isinstance(path, str) and is_address(path)
    if variant is not None and (against is None or is_remote):
        raise UsageError("--variant needs --against SOURCE", "It chooses the weights of the source.")
    if adapters and (against is None or is_remote):
        raise UsageError("--lora needs --against SOURCE", "Adapters are added to the source before it is compared.")
    if isinstance(path, str) and is_remote:
        if checksums or load or fail_under_sqnr is not None:
            raise UsageError(
                f"{path}: --checksums, --load and --fail-under-sqnr need the weights, which stay on the Hub",
                "Download the repo with `hf download OWNER/NAME --local-dir DIR`, then verify DIR.",
            )
        if isinstance(against, str) and is_address(against):
            hint = "To convert its source again and compare, run `lensconv reproduce`."
            raise UsageError(f"{path}: --against needs a folder on this machine for a repo on the Hub", hint)
        local = Path(against) if against is not None else None
        return _verify_remote(parse_address(path), components, local, recipe, reporter)
    path = Path(path)
    if fail_under_sqnr is not None and against is None:
        raise UsageError(
            "--fail-under-sqnr needs --against SOURCE", "The ratio compares the weights with their source."
        )
    audits = open_audits(path, components)
    with ExitStack() as stack:
        sources = _open_against(stack, against, audits, variant) if against is not None else []
        if fail_under_sqnr is not None and all(map(is_quantized, sources)):
            raise UsageError(
                f"--fail-under-sqnr needs an unquantized source, but {sources[0].folder} is quantized already",
                "Give the original with --against.",
            )
        names = [audit.name if len(audits) > 1 else "" for audit in audits]
        extra: list[Check] = []
        notes: list[str] = []
        fidelities: dict[str, Fidelity] = {}
        if recipe is not None:
            extra += check_recipe(audits, sources, recipe)
        if checksums:
            first = audits[0]
            if first.manifest is None and not first.manifest_problem:
                raise UsageError(f"{first.root}: has no {MANIFEST_NAME} to compare checksums with")
            total = sum(files_below(first.root).values())
            with reporter.progress("hashing", total) as shown:
                extra.append(check_sums(first, shown))
        if sources:
            require_library_memory(COMPARING_BYTES)
            additions, found = fit(adapters, audits, sources)
            extra += found
            notes += missing_adapters(audits) if not adapters else ()
            for audit, name, source in zip(audits, names, sources, strict=True):
                measured = _compare(audit, source, reporter, fail_under_sqnr, additions)
                extra += about(name, measured.checks)
                fidelities[audit.name] = measured
        if load:
            require_library_memory()
            from converter.verification.loading import check_loading

            for audit, name in zip(audits, names, strict=True):
                checks, remarks = check_loading(audit)
                extra += about(name, checks)
                notes += remarks
        return make_report(audits, extra, fidelities, notes, () if components else other_components(audits))


def _open_against(
    stack: ExitStack, against: Path | str, audits: Sequence[Audit], variant: str | None
) -> list[Checkpoint]:
    place = stack.enter_context(opened_place(parse_place(against), partial(choose_sources, audits=audits), variant))
    return open_sources(place.folder, audits, variant, place.shadow)


def _compare(
    audit: Audit, source: Checkpoint, reporter: Reporter, fail_under_sqnr: float | None, additions: Additions
) -> Fidelity:
    # Imported here: it imports torch.
    from converter.verification.fidelity import measure_fidelity

    if is_quantized(source):
        return compare_copied(audit, source, reporter=reporter)
    added = additions.get(source.component)
    return measure_fidelity(audit, source, reporter=reporter, fail_under_sqnr=fail_under_sqnr, additions=added)


def make_report(
    audits: Sequence[Audit],
    extra: Sequence[Check] = (),
    fidelities: Mapping[str, Fidelity] | None = None,
    notes: Sequence[str] = (),
    others: Sequence[PipelineComponent] = (),
) -> VerifyReport:
    """Check headers and small files, and add the results of other checks.

    Args:
        audits: of components of one checkpoint.
        extra: other checks that were made.
        fidelities: how far the weights are from their source, by component; None if there was none to compare with.
        notes: what other checks found that is unusual.
        others: the other components of the pipeline, to check as well.
    """
    fidelities = fidelities or {}
    found = [*notes, *unusual(audits, is_compared=bool(fidelities))]
    found += [f"{other.name}: {note}" for other in others for note in other.notes]
    checks = check_repo(audits)
    checks += [check_components(audits[0], others)] if others else []
    return VerifyReport(
        components=tuple(
            VerifiedComponent(
                name=audit.name,
                class_name=audit.class_name,
                tensors=len(audit.checkpoint.tensors),
                bytes_by_dtype=audit.checkpoint.bytes_by_dtype,
                total_bytes=audit.checkpoint.total_bytes,
                parameters=audit.parameters,
                quantized_modules=len(audit.modules),
                families=audit.footprints(),
                fidelity=fidelities[audit.name].to_dict() if audit.name in fidelities else {},
            )
            for audit in audits
        ),
        checks=(*checks, *extra),
        notes=tuple(printable(note, TEXT_LIMIT) for note in found),
        other_components=footprints(others),
        fidelity=join_fidelities(fidelities).to_dict() if fidelities else {},
    )


def _verify_remote(
    address: HubAddress,
    components: Sequence[str],
    against: Path | None,
    recipe: str | Recipe | None,
    reporter: Reporter,
) -> VerifyReport:
    """Check a repo on the Hub by its headers, its small files and the Hub's records."""
    from converter.hub.shadow import shadowed
    from converter.verification.remote import check_local, check_records, local_sizes, remote_report

    def choose(folder: Path) -> Sequence[str | None]:
        return choose_read(folder, components)

    # Faults of the local folder are reported before the first request.
    sizes = local_sizes(against) if against is not None else {}
    with shadowed(address, choose, has_others=not components) as shadow:
        audits = open_audits(shadow.folder, components, reads_headers=False)
        manifest = audits[0].manifest
        others = () if components else other_components(audits, reads_headers=False)
        extra = check_recipe(audits, [], recipe) if recipe is not None else []
        extra.append(check_records(shadow, manifest))
        if against is not None:
            with reporter.progress("hashing", sum(sizes.values())) as shown:
                listed = {*manifest.files, MANIFEST_NAME} if manifest is not None else None
                extra.append(check_local(shadow.repo, against, sizes, listed, shown))
        return remote_report(make_report(audits, extra, others=others), shadow)
