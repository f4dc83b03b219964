"""The chart of the footprint: how many bytes the denoiser takes, by family and dtype."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from converter.checkpoint.dtypes import LONG_NAMES
from converter.conversion.release.manifest import SUMMARY_NAME
from converter.errors import printable
from converter.measurement.evidence.names import METRICS_NAME, MODEL_TITLES, MODELS, SUMMARY_MODELS
from converter.measurement.evidence.statistics import percent_change
from converter.measurement.evidence.units import GB
from converter.measurement.evidence.weights import denoiser_noun, denoiser_title
from converter.presentation.charts.bars import Bar, Group, draw_groups
from converter.presentation.charts.chart import MOST_BYTES, MOST_ROWS, Chart, Evidence, LeftOut, check_drawable
from converter.presentation.charts.figures import Unit, choose_unit, describe_rows, exact_size
from converter.presentation.charts.page import Heading, Key
from converter.presentation.charts.text import drawable

NAME = "footprint"
_TITLE = "Stored size of the {}"
#: Order of Lens' families; those of other models follow in the order of the file.
FAMILIES = ("img_mod", "txt_mod", "attn", "img_mlp", "txt_mlp", "embed", "norm")
#: Dtypes of a model that get a shade of their own.
_SHADES = 3
_OTHER = "other"

#: Bytes by dtype.
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class _Model:
    """Bytes of one model."""

    name: str
    dtypes: Sequence[str]
    """Dtypes with most bytes first; if there are too many, the rest counts as one."""
    families: Mapping[str, Sequence[int]]
    """Bytes of each of these dtypes, by family."""

    @property
    def total(self) -> int:
        """Bytes of all families."""
        return sum(map(sum, self.families.values()))


def footprint_chart(evidence: Evidence) -> Chart | LeftOut:
    """Return the stored sizes of both denoisers.

    Args:
        evidence: contents by file name.

    Raises:
        EvidenceError: a size is larger than anything that can be measured.
    """
    read = _read(evidence)
    if read is None:
        return LeftOut(NAME, f"neither {METRICS_NAME} nor {SUMMARY_NAME} exists")
    file, found = read
    for name, pair in found.items():
        check_drawable(file, name, [size for sizes in pair for size in sizes.values()], MOST_BYTES)
    noun = denoiser_noun(evidence.get(METRICS_NAME, {}))
    models = [
        _by_dtype(name, dict(zip(found, column, strict=True)))
        for name, column in zip(MODELS, zip(*found.values(), strict=True), strict=True)
    ]
    if not any(model.total for model in models):
        return LeftOut(NAME, f"the sizes of both {noun}s are missing")
    return _chart(models, _TITLE.format(noun))


def _read(evidence: Evidence) -> tuple[str, Mapping[str, Sequence[Sizes]]] | None:
    """Return a file and its bytes by dtype of both models, by family; None where no file says them."""
    metrics, summary = evidence.get(METRICS_NAME), evidence.get(SUMMARY_NAME)
    whole = denoiser_title(metrics or {})
    models = [metrics["models"][model] for model in MODELS] if metrics is not None else []
    footprints = [model["transformer"] for model in models if model.get("transformer")]
    if len(footprints) == len(MODELS):
        if all(footprint.get("families") for footprint in footprints):
            return METRICS_NAME, _by_family([footprint["families"] for footprint in footprints])
        return METRICS_NAME, {whole: [footprint["bytes_by_dtype"] for footprint in footprints]}
    if summary is not None:
        short = {long: name for name, long in LONG_NAMES.items()}
        by_dtype = (summary[f"{name}_transformer_dtypes"] for name in SUMMARY_MODELS)
        pair = [{short.get(dtype, dtype): size for dtype, size in sizes.items()} for sizes in by_dtype]
        return SUMMARY_NAME, {whole: pair}
    if models:
        sizes = [model["transformer_storage_gb"] for model in models]
        check_drawable(METRICS_NAME, "transformer_storage_gb", sizes, MOST_BYTES / GB)
        # The file rounds them to three digits.
        return METRICS_NAME, {whole: [{"": round(size * GB)} for size in sizes]}
    return None


def _by_family(lists: Iterable[Iterable[Mapping[str, Any]]]) -> dict[str, list[Sizes]]:
    """Match the families of both models; if there are too many for a chart, the smallest become one row."""
    found: list[dict[str, Counter[str]]] = []
    for families in lists:
        sizes: dict[str, Counter[str]] = {}
        for family in families:
            sizes.setdefault(family["name"], Counter()).update(family["bytes_by_dtype"])
        found.append(sizes)
    known = [name for name in FAMILIES if any(name in sizes for sizes in found)]
    names = dict.fromkeys([*known, *(name for sizes in found for name in sizes)])
    pairs: dict[str, list[Sizes]] = {name: [sizes.get(name, Counter()) for sizes in found] for name in names}
    if len(pairs) <= MOST_ROWS:
        return pairs
    by_size = sorted(pairs, key=lambda name: -max(sum(sizes.values()) for sizes in pairs[name]))
    rest = by_size[MOST_ROWS - 1 :]
    merged: list[Sizes] = [_add(column) for column in zip(*(pairs[name] for name in rest), strict=True)]
    return {name: pair for name, pair in pairs.items() if name not in rest} | {f"{len(rest)} more": merged}


def _by_dtype(name: str, families: Mapping[str, Sizes]) -> _Model:
    totals = _add(families.values())
    dtypes = sorted(totals, key=lambda dtype: (-totals[dtype], dtype))
    if len(dtypes) > _SHADES:
        dtypes[_SHADES - 1 :] = [_OTHER]
    return _Model(name, dtypes, {family: _parts(sizes, dtypes) for family, sizes in families.items()})


def _add(sizes: Iterable[Sizes]) -> Counter[str]:
    return sum(map(Counter, sizes), Counter())


def _parts(sizes: Sizes, dtypes: Sequence[str]) -> list[int]:
    rest = sum(size for dtype, size in sizes.items() if dtype not in dtypes)
    return [sizes.get(dtype, 0) + (rest if dtype == _OTHER else 0) for dtype in dtypes]


def _chart(models: Sequence[_Model], title: str) -> Chart:
    families = list(models[0].families)
    unit = choose_unit(max(sum(parts) for model in models for parts in model.families.values()))
    keys = tuple(
        Key(f"{name} {drawable(dtype, 12)}".strip(), model.name, shade)
        for name, model in zip(MODEL_TITLES, models, strict=True)
        for shade, dtype in enumerate(model.dtypes)
    )
    groups = [Group(family, [_bar(model.families[family], unit) for model in models]) for family in families]
    rows = {family: [_words(model, family) for model in models] for family in families}
    totals = _compare([model.total for model in models])
    heading, label = Heading(title, totals, keys), f"Stored bytes ({unit.name})"
    description = f"{title}: {totals}. {describe_rows(rows)}"
    return Chart(NAME, description, partial(draw_groups, heading=heading, groups=groups, label=label))


def _bar(parts: Sequence[int], unit: Unit) -> Bar:
    return Bar([unit.of(part) for part in parts], unit.show(sum(parts)) if any(parts) else "none")


def _words(model: _Model, family: str) -> str:
    parts = zip(model.dtypes, model.families[family], strict=True)
    return " and ".join(f"{exact_size(size)} {printable(dtype, 20)}".strip() for dtype, size in parts if size) or "none"


def _compare(totals: Sequence[int]) -> str:
    unit = choose_unit(max(totals))
    text = ", ".join(f"{exact_size(total, unit)} {model}" for total, model in zip(totals, MODELS, strict=True))
    if not totals[0]:
        return text
    change = percent_change(*totals)
    return f"{text}: {abs(change):.1f} % {'less' if change <= 0 else 'more'}"
