"""The sources that quantized components are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converter.checkpoint.files import read_json
from converter.checkpoint.source import DENOISERS, PIPELINE_INDEX, Checkpoint, open_checkpoint, pipeline_components
from converter.conversion.release.manifest import CONFIG_NAME
from converter.errors import InputError, UsageError
from converter.hub.readers import read_by_ranges
from converter.hub.shadow import Shadow
from converter.verification.audit import Audit


def open_sources(
    path: Path, audits: Sequence[Audit], variant: str | None, shadow: Shadow | None = None
) -> list[Checkpoint]:
    """Open the source of each audited component: a component folder or a pipeline repo.

    Args:
        path: of the source.
        audits: of the quantized components.
        variant: the variant of the weights to prefer to the plain files.
        shadow: in which the source is, if it is on the Hub.

    Raises:
        UsageError: the source is one component, but several are to be compared.

    Raises also what ``open_checkpoint`` raises.
    """
    if len(audits) > 1 and not (path / PIPELINE_INDEX).is_file():
        names = ", ".join(audit.name for audit in audits)
        raise UsageError(
            f"{path}: is one component, but several are compared: {names}",
            "Give the pipeline repo, or choose one with --component.",
        )
    chosen = choose_sources(path, audits)
    return [read_by_ranges(open_checkpoint(path, component=name, variant=variant), shadow) for name in chosen]


def choose_sources(path: Path, audits: Sequence[Audit]) -> list[str | None]:
    """The component of a source that each audited component was made from; None for its denoiser, or outside of one."""
    return [_choose_source(path, audit) for audit in audits]


def _choose_source(path: Path, audit: Audit) -> str | None:
    if not (path / PIPELINE_INDEX).is_file():
        return None
    if audit.checkpoint.component:
        return audit.checkpoint.component
    components = pipeline_components(path) if audit.class_name else {}
    candidates = [name for name in components if _class_in(path / name) == audit.class_name]
    # Two components can have the same class; then the name of the folder decides.
    preferred = (audit.checkpoint.folder.resolve().name, *DENOISERS, *candidates)
    return next((name for name in preferred if name in candidates), None)


def _class_in(folder: Path) -> str:
    """The class in a component's config; empty if it has none."""
    try:
        config = read_json(folder / CONFIG_NAME)
    except InputError:
        return ""
    return Checkpoint(folder=folder, headers=(), tensors={}, config=config, stem="").class_name
