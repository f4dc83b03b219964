"""Which components of a repo a verification examines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from converter.checkpoint.components import PipelineComponent, examine_components
from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.header import Header, read_header
from converter.checkpoint.source import DENOISERS, PIPELINE_INDEX, pipeline_components
from converter.checkpoint.weights import WEIGHTS_SUFFIX
from converter.conversion.choosing import order_components
from converter.conversion.release.manifest import QUANTIZATION_CONFIG_NAME, Manifest, read_manifest
from converter.errors import InputError
from converter.verification.audit import Audit


def open_audits(path: Path, wanted: Sequence[str] = (), *, reads_headers: bool = True) -> tuple[Audit, ...]:
    """Audit components of a checkpoint.

    Args:
        path: a component folder, a pipeline repo or a ``.safetensors`` file.
        wanted: as for ``choose_audited``, like ``reads_headers``.

    Raises: what ``Audit`` raises.
    """
    first, *others = choose_audited(path, wanted, reads_headers=reads_headers)
    audit = Audit(path, component=first)
    return (audit, *(Audit(path, component=name, manifest=audit.manifest) for name in others))


def choose_audited(path: Path, wanted: Sequence[str], *, reads_headers: bool = True) -> tuple[str | None, ...]:
    """Choose the components that are examined, the main one first.

    Args:
        path: as for ``open_audits``.
        wanted: names. By default these are the components that the manifest describes, those that are quantized by
            SDNQ, and the denoiser; but no denoiser of plain floats that the manifest does not describe, if there is
            another component to examine.
        reads_headers: whether headers of all components can be read; of a repo on the Hub, only those that
            ``choose_read`` names can.

    Returns:
        What ``Audit`` takes for each.
    """
    return _choose(path, wanted, _is_plain, reads_headers=reads_headers)


def choose_read(path: Path, wanted: Sequence[str]) -> tuple[str | None, ...]:
    """Choose the components of a repo on the Hub whose headers are read, before any is read.

    They are those that are examined, and the denoiser, whose headers decide whether it is.

    Args: those of ``choose_audited``.
    """
    return _choose(path, wanted, lambda _: False, reads_headers=False)


def _choose(
    path: Path, wanted: Sequence[str], is_plain: Callable[[PipelineComponent], bool], *, reads_headers: bool
) -> tuple[str | None, ...]:
    if wanted or not (path / PIPELINE_INDEX).is_file():
        return order_components(path, wanted)
    try:
        components = pipeline_components(path)
        examined = examine_components(path, reads_headers=reads_headers)
    except InputError:
        # Opening the folder raises the reason.
        return (None,)
    described = _described(path)
    found = [name for name in described if name in components]
    found += [component.name for component in examined if _uses_sdnq(component) and component.name in components]
    denoiser = next((component for name in DENOISERS for component in examined if component.name == name), None)
    if denoiser is not None and not (found and is_plain(denoiser)):
        found.append(denoiser.name)
    return order_components(path, found)


def _described(root: Path) -> Sequence[str]:
    try:
        manifest: Manifest | None = read_manifest(root)
    except InputError:
        # The check of the manifest says what is wrong with it.
        return ()
    return tuple(manifest.components) if manifest is not None else ()


def _uses_sdnq(component: PipelineComponent) -> bool:
    if not component.is_model:
        return False
    return component.quantization == "sdnq" or (
        not component.quantization and (component.folder / QUANTIZATION_CONFIG_NAME).is_file()
    )


def _is_plain(component: PipelineComponent) -> bool:
    """Whether a component has floats only, as far as that is known."""
    return WEIGHT_DTYPES.issuperset(entry.dtype for header in _headers(component) for entry in header.tensors.values())


def _headers(component: PipelineComponent) -> Sequence[Header]:
    """Headers of a component, which may not have been examined with it."""
    if component.headers or component.problems:
        return component.headers
    return [read_header(file) for file in component.weights if file.suffix == WEIGHTS_SUFFIX]
