"""Which components of a pipeline repo are converted, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from converter.checkpoint.components import PipelineComponent, examine_components
from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.source import DENOISERS, PIPELINE_INDEX, examine_checkpoint, pipeline_components
from converter.checkpoint.weights import PICKLE_SUFFIXES
from converter.errors import UsageError, printable
from converter.models.roles import role

#: What ``--component`` calls all components that are worth it.
ALL = "all"
#: A text encoder is worth it above so many bytes; below, a release hardly gets smaller.
LEAST_TEXT_ENCODER_BYTES = 500_000_000
#: Roles of the components that ``all`` looks at.
QUANTIZED_ROLES = ("denoiser", "text encoder")
#: Dtypes of buffers, such as positions, that models have beside their weights.
_INTEGER_BUFFERS = {"I64", "I32", "BOOL"}


def choose_components(
    source: Path, wanted: Sequence[str], variant: str | None = None, *, reads_headers: bool = True
) -> tuple[str | None, ...]:
    """Choose the components to convert: the main one first, then the other denoisers, then the rest.

    The order does not depend on that of the arguments, so that two runs write the same release.

    Args:
        source: a component folder, a pipeline repo or a ``.safetensors`` file.
        wanted: names; ``all`` stands for the denoisers and for text encoders above 500 MB, without what is quantized
            already. Nothing stands for the first denoiser.
        variant: the variant of the weights to prefer to the plain files.
        reads_headers: as for ``examine_components``.

    Returns:
        What ``open_checkpoint`` takes for each.

    Raises:
        UsageError: ``all`` stands for nothing, or the source has no components.
        InputError: ``model_index.json`` cannot be read.
    """
    if not stands_for_several(source, wanted):
        return order_components(source, wanted)
    names = [name for name in wanted if name != ALL]
    names += _worth_it(source, variant, reads_headers=reads_headers)
    if not names:
        raise UsageError(
            f"{source}: --component {ALL} finds neither a denoiser nor a large text encoder to quantize",
            f"Name a component: {', '.join(pipeline_components(source))}.",
        )
    return order_components(source, names)


def only_component(source: Path, wanted: Sequence[str], variant: str | None = None) -> Path:
    """The folder of the one component of a pipeline repo that is converted.

    Args: those of ``choose_components``.

    Raises:
        UsageError: the source has no components, or several are to be converted.
        InputError: ``model_index.json`` or the component cannot be read.
    """
    names = choose_components(source, wanted, variant, reads_headers=False)
    checkpoint = examine_checkpoint(source, component=names[0], variant=variant)
    if len(names) > 1 or checkpoint.pipeline is None:
        what = "converts several components" if len(names) > 1 else f"{source} has no components"
        raise UsageError(f"--component-only leaves out all components but one, but this {what}", "Leave it out.")
    return checkpoint.folder


def stands_for_several(source: Path | None, wanted: Sequence[str]) -> bool:
    """Whether ``all`` is among the names, and no component is called so.

    Args:
        source: a pipeline repo, or something else that can be converted.
        wanted: names.

    Raises:
        InputError: ``model_index.json`` cannot be read.
    """
    if ALL not in wanted or source is None or not (source / PIPELINE_INDEX).is_file():
        return False
    return ALL not in pipeline_components(source)


def order_components(source: Path, names: Sequence[str]) -> tuple[str | None, ...]:
    """Put names of components in the order in which they are converted and shown, each once.

    Args:
        source: as for ``choose_components``.
        names: of its components; nothing stands for the first denoiser.

    Raises:
        InputError: ``model_index.json`` cannot be read.
    """
    if not names or not (source / PIPELINE_INDEX).is_file():
        # Opening the source says what is wrong with a name.
        return tuple(dict.fromkeys(names)) or (None,)
    components = pipeline_components(source)

    def position(name: str) -> tuple[int, bool, int]:
        _, class_name = components.get(name, ("", ""))
        first = DENOISERS.index(name) if name in DENOISERS else len(DENOISERS)
        return first, role(name, class_name) != "denoiser", [*components].index(name) if name in components else 0

    return tuple(sorted(dict.fromkeys(names), key=position))


def _worth_it(pipeline: Path, variant: str | None, *, reads_headers: bool) -> Iterator[str]:
    for component in examine_components(pipeline, variant, reads_headers=reads_headers):
        is_asked_for = component.is_model and role(component.name, component.class_name) in QUANTIZED_ROLES
        if is_asked_for and not reason_left(component):
            yield component.name


def reason_left(component: PipelineComponent) -> str:
    """Why ``all`` leaves a denoiser or a text encoder as it is; empty if it does not."""
    if component.quantization:
        return f"it is quantized already ({printable(component.quantization, 40)})"
    if any(file.suffix in PICKLE_SUFFIXES for file in component.weights):
        return "its weights may contain pickles"
    dtypes = {entry.dtype for header in component.headers for entry in header.tensors.values()}
    if not WEIGHT_DTYPES.issuperset(dtypes - _INTEGER_BUFFERS):
        return "it is quantized already"
    is_encoder = role(component.name, component.class_name) == "text encoder"
    if is_encoder and component.footprint.bytes <= LEAST_TEXT_ENCODER_BYTES:
        return "it is small"
    return ""
