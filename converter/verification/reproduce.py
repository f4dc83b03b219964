"""Converting the source of a release again, and comparing every tensor.

Neither side is stored: the release is read once, for a sha256 of each tensor; then the source is converted as it is
read, and what would be written is summed up in the same way.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.ignored import is_ignored
from converter.checkpoint.source import PIPELINE_INDEX, Checkpoint, pipeline_components
from converter.checkpoint.weights import INDEX_SUFFIX, is_weight_name, plain_name
from converter.console import SILENT, Reporter
from converter.conversion.execution.summing import sum_output
from converter.conversion.execution.work import Work, make_work
from converter.conversion.planning.plan import Plan
from converter.conversion.planning.rules import PLACEMENT
from converter.conversion.release.code import CODE_SUFFIX
from converter.conversion.release.manifest import (
    CARD_NAME,
    CONFIG_NAME,
    MANIFEST_NAME,
    QUANTIZATION_CONFIG_NAME,
    SUMMARY_NAME,
    encode_json,
)
from converter.conversion.request import Target
from converter.errors import MalformedCheckpoint, UnsupportedCheckpoint
from converter.libraries import QUANTIZING_ERRORS, package_versions, require_library_memory
from converter.verification.audit import Audit
from converter.verification.audited import choose_read, open_audits
from converter.verification.configuration import differing_entries
from converter.verification.manifest import visible_files
from converter.verification.origins import Place, inferred_target, open_origins, opened_place, parse_place
from converter.verification.release_sums import sum_release
from converter.verification.report import Check, about, list_problems
from converter.verification.reproduction import ReproducedComponent, ReproduceReport


def reproduce(
    release: Path | str,
    source: Path | str | None = None,
    *,
    components: Sequence[str] = (),
    connections: int = 4,
    reporter: Reporter = SILENT,
) -> ReproduceReport:
    """Convert the source of a release again, and compare every tensor.

    Args:
        release: a folder, or ``hf://OWNER/NAME`` with an optional ``@REVISION``.
        source: what it was made from, a path or an address; by default the repo and commit that its manifest names.
        components: which components of a pipeline; by default all that SDNQ has quantized.
        connections: files of a repo to read at a time.
        reporter: shows progress.

    Raises:
        InputError: release or source cannot be read, or nothing says what the source is.
        ResourceError: the machine lacks memory or a package.
        HubError: the Hub refuses, cannot be reached, or sends other bytes than it has recorded.
    """
    started = time.monotonic()
    # Faults of the command line are reported before the first request.
    place = parse_place(release)
    if source is not None:
        parse_place(source)
    require_library_memory()
    with ExitStack() as stack:
        choose = partial(choose_read, wanted=components)
        opened = stack.enter_context(opened_place(place, choose, has_others=not components))
        audits = [
            audit
            for audit in open_audits(opened.folder, components, reads_headers=opened.shadow is None)
            if audit.config
        ]
        if not audits:
            raise UnsupportedCheckpoint(f"{opened}: SDNQ has quantized nothing in it")
        sources = open_origins(stack, audits, source)
        for used in (opened, *(found for found, _ in sources)):
            if used.shadow is not None:
                used.shadow.check_contents()
                used.shadow.repo.be_patient(reporter)
        checks: list[Check] = []
        found: list[ReproducedComponent] = []
        notes = list(_differing_versions(audits[0]))
        for audit, (origin, checkpoint) in zip(audits, sources, strict=True):
            notes += _notes(audit)
            component, own = _compare(audit, opened, origin, checkpoint, connections, reporter)
            found.append(component)
            checks += about(audit.name if len(audits) > 1 else "", own)
        checks += _check_others(audits, opened, sources[0][0])
        repos = {used.shadow.repo for used in (opened, *(used for used, _ in sources)) if used.shadow}
        received = sum(repo.received_bytes for repo in repos)
    return ReproduceReport(str(opened), tuple(found), tuple(checks), tuple(notes), time.monotonic() - started, received)


def _compare(
    audit: Audit, release: Place, origin: Place, source: Checkpoint, connections: int, reporter: Reporter
) -> tuple[ReproducedComponent, list[Check]]:
    """Compare one component with what its source becomes."""
    target = inferred_target(audit, source, connections)
    plan, work = _plan(audit, target)
    theirs = sum_release(audit.checkpoint, reporter, shadow=release.shadow, connections=connections)
    ours = sum_output(target, work, reporter, shadow=origin.shadow)
    specs = {spec.name: (spec.dtype, spec.shape) for spec in plan.specs}
    problems: dict[str, str] = {}
    for header in audit.checkpoint.headers:
        for entry in sorted(header.tensors.values(), key=lambda entry: entry.start):
            if entry.name not in specs:
                problems[entry.name] = f"{entry.name} is not made from the source"
            elif (entry.dtype, entry.shape) != specs[entry.name] or theirs[entry.name] != ours[entry.name]:
                problems[entry.name] = f"{entry.name} differs from what its source becomes"
    problems |= {name: f"{name} is missing from the release" for name in specs if name not in theirs}
    good = f"all {len(specs)} tensors have the bytes that the source becomes"
    checks = [
        *_check_source(audit, origin, source),
        list_problems("tensors", list(problems.values()), good),
        _check_headers(audit, work),
        _check_config(audit, plan),
    ]
    component = ReproducedComponent(
        name=audit.name,
        class_name=plan.class_name,
        source=str(origin),
        recipe="manifest" if audit.described is not None else "config",
        tensors=len(specs),
        differing=tuple(problems),
    )
    return component, checks


def _plan(audit: Audit, target: Target) -> tuple[Plan, Work]:
    """Plan with SDNQ's configuration of the release, which has every decision in it."""
    # Imported here: they import torch.
    from converter.conversion.kernels.selfcheck import kernel_agrees
    from converter.conversion.planning.planner import plan_with_sdnq

    config = {name: value for name, value in audit.config.items() if name not in PLACEMENT}
    try:
        plan = plan_with_sdnq(target.checkpoint, target.recipe, config)
    except QUANTIZING_ERRORS as error:
        raise MalformedCheckpoint(audit.root, f"SDNQ cannot use its configuration: {error!r}") from error
    return plan, make_work(target, plan, use_fused=kernel_agrees(plan))


def _check_source(audit: Audit, origin: Place, source: Checkpoint) -> Iterator[Check]:
    """Compare the source's files with those that the manifest lists, if there is one."""
    if audit.described is None:
        return
    files = audit.described.source["files"]
    listed = {name: file for file in files if isinstance(name := file.get("name"), str)}
    problems = [f"{name} is not in the source" for name in listed if name not in {h.file.name for h in source.headers}]
    for header in source.headers:
        name, noted = header.file.name, listed.get(header.file.name)
        recorded = origin.shadow.record_of(header.file).sha256 if origin.shadow is not None else None
        if noted is None:
            problems.append(f"{name} is not a file that the manifest lists")
        elif noted.get("header_sha256") != header.sha256 or noted.get("bytes") != header.file_bytes:
            problems.append(f"{name} is not the file that the manifest lists")
        elif recorded is not None and noted.get("sha256") not in (None, recorded):
            problems.append(f"{name} has another sha256 than the manifest lists")
    yield list_problems("source", problems, f"{len(listed)} files of the source are those that the manifest lists")


def _check_headers(audit: Audit, work: Work) -> Check:
    """Compare names and headers of the weight files, in which the order of the tensors is."""
    made = {file.name: hashlib.sha256(file.header).hexdigest() for file in work.layout.files}
    found = {header.file.name: header.sha256 for header in audit.checkpoint.headers}
    problems = [f"{name} is missing from the release" for name in made if name not in found]
    problems += [f"{name} is not made from the source" for name in found if name not in made]
    problems += [f"the header of {name} differs" for name in made if found.get(name, made[name]) != made[name]]
    return list_problems("files", problems, f"{len(made)} weight files have the headers that would be written")


def _check_config(audit: Audit, plan: Plan) -> Check:
    """Compare the configs: byte by byte in a release of lensconv, else what they say of the model."""
    good = "the configs are those that would be written"
    if audit.manifest is None:
        different = differing_entries(plan.config, audit.checkpoint.config)
        return list_problems("config", [f"{CONFIG_NAME} differs in {name}" for name in different], good)
    # Dtypes that SDNQ decided are taken from the configuration, so that it does not decide again.
    dynamic = {"use_dynamic_quantization": audit.config.get("use_dynamic_quantization", False)}
    quantization = {**plan.quantization_config, **dynamic}
    contents = {
        CONFIG_NAME: {**plan.config, "quantization_config": quantization},
        QUANTIZATION_CONFIG_NAME: quantization,
    }
    problems = [
        f"{name} differs"
        for name, content in contents.items()
        if not (audit.checkpoint.folder / name).is_file()
        or (audit.checkpoint.folder / name).read_bytes() != encode_json(content)
    ]
    return list_problems("config", problems, good)


def _check_others(audits: Sequence[Audit], release: Place, source: Place) -> Iterator[Check]:
    """Compare the files that were copied with those of the source; of those on the Hub, the records.

    What a component of the release contains counts, and code, even if the manifest does not list it.
    """
    manifest = audits[0].manifest
    if manifest is None or audits[0].checkpoint.pipeline is None or not (source.folder / PIPELINE_INDEX).is_file():
        return
    folders = pipeline_components(release.folder)
    found = {name for name in _names(release) if name.partition("/")[0] in folders or name.endswith(CODE_SUFFIX)}
    card = {name for name in manifest.card_files if name not in found}
    own = {SUMMARY_NAME, MANIFEST_NAME, CARD_NAME, *card}
    names = sorted((manifest.files.keys() | found) - own)
    others = [name for name in names if not _is_converted(name, manifest.components)]
    there: dict[str, list[str]] = {}
    for name in _names(source):
        folder, slash, file = name.rpartition("/")
        there.setdefault(f"{folder}{slash}{plain_name(file)}", []).append(name)
    problems, compared = [], 0
    for name in others:
        originals = there.get(name, [])
        if originals and name not in originals and name.endswith(INDEX_SUFFIX):
            # It names files without their variant, and those of the source with it.
            continue
        compared += 1
        if not originals:
            problems.append(f"{name} is not in the source")
        elif _sum_of(release, name) not in [_sum_of(source, original) for original in originals]:
            problems.append(f"{name} differs from the source")
    left = f"; {len(others) - compared} have other names there" if compared < len(others) else ""
    yield list_problems("other files", problems, f"{compared} files are those of the source{left}")


def _names(place: Place) -> list[str]:
    """Paths of the files that loaders may read."""
    if place.shadow is not None:
        return [name for name in place.shadow.repo.files if not is_ignored(name)]
    return list(visible_files(place.folder))


def _is_converted(name: str, components: Iterable[str]) -> bool:
    """Whether a file is one that lensconv writes for a component that it converts; other checks compare these."""
    folder, _, file = name.partition("/")
    return folder in components and (is_weight_name(file) or file in (CONFIG_NAME, QUANTIZATION_CONFIG_NAME))


def _sum_of(place: Place, name: str) -> str | None:
    """The sha256 of a file; None if there is none."""
    file = place.folder / name
    if place.shadow is None:
        return file_sha256(file)
    record = place.shadow.repo.files.get(name)
    if record is None:
        return None
    return record.sha256 or hashlib.sha256(place.shadow.repo.read(name)).hexdigest()


def _differing_versions(audit: Audit) -> Iterator[str]:
    if audit.manifest is None:
        return
    installed: Mapping[str, str] = package_versions()
    for name, version in sorted(audit.manifest.versions.items()):
        if name in installed and installed[name] != version:
            yield f"the release was made with {name} {version}, and {installed[name]} is installed; bytes may differ"


def _notes(audit: Audit) -> Iterator[str]:
    if audit.described is None:
        yield (
            "the release has no manifest: its recipe is inferred from SDNQ's configuration, weights are quantized from "
            "bfloat16, and other files are not compared"
        )
    elif audit.described.device:
        yield f"SDNQ's functions ran on {audit.described.device}; on a CPU they may give other bytes"
