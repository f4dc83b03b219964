"""How many bytes the transformer takes, by family and dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

from matplotlib.figure import Figure

from converter.checkpoint.dtypes import LONG_NAMES
from converter.conversion.release.manifest import SUMMARY_NAME
from converter.errors import printable
from converter.measurement.evidence.names import METRICS_NAME
from converter.measurement.evidence.statistics import percent_change
from converter.presentation.charts.bars import Bar, Group, draw_groups
from converter.presentation.charts.chart import (
    MODELS,
    MOST_BYTES,
    MOST_ROWS,
    Chart,
    Evidence,
    LeftOut,
    Unit,
    check_drawable,
    choose_unit,
    exact_size,
)
from converter.presentation.charts.chart import exact_number as exact
from converter.presentation.charts.page import Heading, Key
from converter.presentation.charts.style import Theme
from converter.presentation.charts.text import drawable

NAME = "footprint"
TITLE = "Stored size of the transformer"
#: Order of Lens' families; those of other models follow as the file has them.
FAMILIES = ("img_mod", "txt_mod", "attn", "img_mlp", "txt_mlp", "embed", "norm")
#: Dtypes of a model that get a shade of their own.
_SHADES = 3
_OTHER = "other"
_WHOLE = "Transformer"

#: Bytes by dtype.
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class _Footprint:
    """Both models' bytes by family and dtype."""

    families: Mapping[str, tuple[Sizes, Sizes]]

    def dtypes(self, index: int) -> list[str]:
        """Of one model: those with most bytes first, the rest as one."""
        totals: dict[str, int] = {}
        for sizes in self.families.values():
            for dtype, size in sizes[index].items():
                totals[dtype] = totals.get(dtype, 0) + size
        names = sorted((name for name, size in totals.items() if size), key=lambda name: (-totals[name], name))
        return names if len(names) <= _SHADES else [*names[: _SHADES - 1], _OTHER]

    def total(self, index: int) -> int:
        """Bytes of one model."""
        return sum(sum(sizes[index].values()) for sizes in self.families.values())

    @property
    def unit(self) -> Unit:
        """In which the longest bar is at least one."""
        return choose_unit(max(sum(sizes.values()) for pair in self.families.values() for sizes in pair))


def footprint_chart(evidence: Evidence) -> Chart | LeftOut:
    """What the headers of both checkpoints add up to.

    Args:
        evidence: contents by file name.

    Raises:
        EvidenceError: a size is beyond everything that exists.
    """
    found = _read(evidence)
    if found is None:
        return LeftOut(NAME, f"neither {METRICS_NAME} nor {SUMMARY_NAME} is there")
    for name, pair in found.families.items():
        check_drawable(METRICS_NAME, name, [size for sizes in pair for size in sizes.values()], MOST_BYTES)
    if not found.total(0) and not found.total(1):
        return LeftOut(NAME, "neither transformer has a size")
    return Chart(NAME, _describe(found), partial(_draw, found))


def _read(evidence: Evidence) -> _Footprint | None:
    metrics, summary = evidence.get(METRICS_NAME), evidence.get(SUMMARY_NAME)
    models = [metrics["models"][model] for model in MODELS] if metrics is not None else []
    footprints = [model.get("transformer") for model in models]
    if footprints and all(footprint and footprint.get("families") for footprint in footprints):
        return _Footprint(_by_family([footprint["families"] for footprint in footprints]))
    if footprints and all(footprints):
        first, second = (footprint["bytes_by_dtype"] for footprint in footprints)
        return _Footprint({_WHOLE: (first, second)})
    if summary is not None:
        short = {long: name for name, long in LONG_NAMES.items()}
        first, second = (
            {short.get(name, name): size for name, size in summary[f"{key}_transformer_dtypes"].items()}
            for key in ("base", "quant")
        )
        return _Footprint({_WHOLE: (first, second)})
    if models:
        sizes = [model["transformer_storage_gb"] for model in models]
        check_drawable(METRICS_NAME, "transformer_storage_gb", sizes, MOST_BYTES / 10**9)
        # Rounded to three digits, as the file is.
        first, second = ({"": round(size * 10**9)} for size in sizes)
        return _Footprint({_WHOLE: (first, second)})
    return None


def _by_family(lists: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, tuple[Sizes, Sizes]]:
    """Match the families of both models; those that are too many for a chart become one, the smallest first."""
    first: dict[str, Sizes] = {}
    second: dict[str, Sizes] = {}
    for found, families in zip((first, second), lists, strict=True):
        for family in families:
            found[family["name"]] = _add(found.get(family["name"], {}), family["bytes_by_dtype"])
    names = [name for name in FAMILIES if name in first or name in second]
    names += [name for name in [*first, *second] if name not in FAMILIES]
    pairs = {name: (first.get(name, {}), second.get(name, {})) for name in names}
    if len(pairs) <= MOST_ROWS:
        return pairs
    by_size = sorted(pairs, key=lambda name: -max(sum(sizes.values()) for sizes in pairs[name]))
    rest = by_size[MOST_ROWS - 1 :]
    merged = reduce(_add, (pairs[name][0] for name in rest)), reduce(_add, (pairs[name][1] for name in rest))
    return {name: pair for name, pair in pairs.items() if name not in rest} | {f"{len(rest)} more": merged}


def _add(first: Sizes, second: Sizes) -> Sizes:
    return {dtype: first.get(dtype, 0) + second.get(dtype, 0) for dtype in [*first, *second]}


def _draw(found: _Footprint, theme: Theme) -> Figure:
    unit = found.unit
    keys = []
    for index, (model, word) in enumerate(zip(MODELS, ("Original", "Quantized"), strict=True)):
        for shade, dtype in enumerate(found.dtypes(index)):
            keys.append(Key(f"{word} {drawable(dtype, 12)}".strip(), model, shade))
    first, second = (found.dtypes(index) for index in range(2))
    groups = [
        Group(name, _bar(pair[0], first, unit), _bar(pair[1], second, unit)) for name, pair in found.families.items()
    ]
    return draw_groups(theme, Heading(TITLE, _totals(found), tuple(keys)), groups, f"Stored bytes ({unit.name})")


def _bar(sizes: Sizes, dtypes: Sequence[str], unit: Unit) -> Bar:
    parts = _parts(sizes, dtypes)
    return Bar(tuple(unit.of(part) for part in parts), unit.show(sum(parts)) if any(parts) else "none")


def _parts(sizes: Sizes, dtypes: Sequence[str]) -> list[int]:
    rest = sum(size for dtype, size in sizes.items() if dtype not in dtypes)
    return [sizes.get(dtype, 0) + (rest if dtype == _OTHER else 0) for dtype in dtypes]


def _totals(found: _Footprint) -> str:
    first, second = found.total(0), found.total(1)
    unit = choose_unit(max(first, second))
    text = f"{exact(unit.of(first))} {unit.name} original, {exact(unit.of(second))} {unit.name} quantized"
    if not first:
        return text
    change = percent_change(first, second)
    return f"{text}: {abs(change):.1f} % {'less' if change <= 0 else 'more'}"


def _describe(found: _Footprint) -> str:
    rows = []
    for name, pair in found.families.items():
        sides = []
        for index, model in enumerate(MODELS):
            dtypes = found.dtypes(index)
            parts = [
                f"{exact_size(size)} {printable(dtype, 20)}".strip()
                for dtype, size in zip(dtypes, _parts(pair[index], dtypes), strict=True)
                if size
            ]
            sides.append(f"{model} {' and '.join(parts) or 'none'}")
        rows.append(f"{printable(name, 40)}: {', '.join(sides)}")
    return f"{TITLE}: {_totals(found)}. {'; '.join(rows)}."
