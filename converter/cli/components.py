"""Lines about the components of a pipeline that a command did not convert or examine closely."""

from __future__ import annotations

from collections.abc import Sequence

from converter.checkpoint.footprint import ComponentFootprint, WholeFootprint
from converter.console import readable_size
from converter.errors import printable

#: A dtype is named if it takes at least this share of a component.
_NAMED_SHARE = 0.01


def list_components(components: Sequence[ComponentFootprint]) -> str:
    """Name components with their sizes, such as ``vae 335.3 MB BF16``."""
    return ", ".join(
        " ".join((printable(component.name), readable_size(component.bytes), _dtypes(component))).rstrip()
        for component in components
    )


def _dtypes(component: ComponentFootprint) -> str:
    return "+".join(dtype for dtype, size in component.bytes_by_dtype.items() if size >= _NAMED_SHARE * component.bytes)


def unconverted_lines(components: Sequence[ComponentFootprint], whole: WholeFootprint) -> list[str]:
    """What stays as it is, and the size of the whole release; nothing outside of a pipeline."""
    if not components:
        return []
    percent, source = 100 * whole.reduction, readable_size(whole.source_bytes)
    return [
        f"Not converted: {list_components(components)}.",
        f"Whole release: {readable_size(whole.bytes)}, {percent:.1f} % smaller than the whole source ({source}).",
    ]
