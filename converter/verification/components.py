"""The check of the other components of a pipeline: whether their loaders find what they open."""

from __future__ import annotations

from collections.abc import Sequence

from converter.checkpoint.components import PipelineComponent, examine_components
from converter.errors import FileError
from converter.verification.audit import Audit
from converter.verification.manifest import file_size
from converter.verification.report import Check, list_problems


def other_components(audits: Sequence[Audit], *, reads_headers: bool = True) -> tuple[PipelineComponent, ...]:
    """The components beside the audited ones; none outside of a pipeline.

    Args:
        audits: of components of one repo.
        reads_headers: whether to read headers. Of a repo on the Hub, only names and sizes of weight files are known.

    Raises:
        FileError: ``model_index.json`` cannot be read.
    """
    pipeline = audits[0].checkpoint.pipeline
    if pipeline is None:
        return ()
    return examine_components(pipeline, besides={audit.name for audit in audits}, reads_headers=reads_headers)


def check_components(audit: Audit, components: Sequence[PipelineComponent]) -> Check:
    """Check that every weight file that a loader opens exists and is complete, as far as headers show.

    Args:
        audit: of a component of the pipeline; what its manifest shows to be missing or of another size is not repeated.
        components: those beside the audited ones.
    """
    problems = [
        problem.message
        for component in components
        for problem in component.problems
        if not _is_in_manifest_check(audit, problem)
    ]
    models = [component for component in components if component.is_model]
    how = "by their headers" if all(component.headers for component in models) else "by name and size"
    listed = ", ".join(component.name for component in models)
    return list_problems("components", problems, f"{listed}: weights complete {how}" if models else "none has weights")


def _is_in_manifest_check(audit: Audit, problem: FileError) -> bool:
    """Whether the manifest lists the file, or one in the folder, and it is missing or has another size."""
    if audit.manifest is None:
        return False
    faulty = (audit.root / name for name, file in audit.manifest.files.items() if _differs(audit, name, file.bytes))
    return any(file.is_relative_to(problem.file) for file in faulty)


def _differs(audit: Audit, name: str, size: int) -> bool:
    return file_size(audit.root / name) != size
