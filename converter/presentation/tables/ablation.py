"""The table of an ablation: what each variant saves, and the harm that it does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from converter.measurement.evidence.ablation import by_prompt
from converter.presentation.tables.ablation_variants import ComparedVariant, compare_variants, has_velocity
from converter.presentation.tables.figures import count, counted, decimal, size
from converter.presentation.tables.table import NOTHING, Figure, Table

#: Titles of columns, in their order.
_COLUMNS = (_NAME, _MARK, _BYTES, _SAVED, _MODULES, _RATIO, _VELOCITY, _PATTERN, _RATE, _HARM) = (
    *("Variant", "Mark", "Bytes", "Saved", "Modules", "SQNR, dB"),
    *("Velocity error", "Pattern", "CER", "Harm per GB"),
)
#: Key, title and digits of the figures of images that the table has, and what they are.
_IMAGE_FIGURES = (
    ("periodic_grid_added", _PATTERN, 2, "Pattern is the added periodic pattern in grey levels."),
    ("cer", _RATE, 3, "CER is the character error rate."),
)
#: A space at which no line ends.
_SPACE = "\N{NO-BREAK SPACE}"
#: Longest reason of a failure that a line repeats, in characters.
_REASON_LIMIT = 100
#: Titles of methods, by their names in the file.
_METHODS = {"weights": "Weights", "velocity": "Velocity error", "interval": "Intervals"}
_IMAGE_METHODS = {
    "psnr_db": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "periodic_grid": "Added periodic pattern",
    "periodic_grid_added": "Added periodic pattern",
    "text": "Character error rate",
    "cer": "Character error rate",
}


def ablation_table(content: Mapping[str, Any], release: str = "", *, is_narrow: bool = False) -> Table:
    """Return a row for each variant, that with the least harm per byte saved first, and rows of the original.

    Args:
        content: of ``ablation.json``.
        release: name of the variant that has the weights of a release; empty if there is none.
        is_narrow: whether it must fit into a terminal, without intervals and what other columns give.
    """
    variants = sorted(compare_variants(content, release), key=_order)
    keys = {key for variant in variants for key in _summary(variant.content)}
    rows = [{_NAME: variant.name, **_cells(variant, with_interval=not is_narrow)} for variant in variants]
    rows += [{_NAME: name, **cells} for name, cells in _originals(content)]
    left_out = {title for key, title, _, _ in _IMAGE_FIGURES if key not in keys}
    left_out |= set() if has_velocity(content) else {_VELOCITY}
    if is_narrow:
        left_out |= {_SAVED, _MODULES, *([_RATIO] if has_velocity(content) else [])}
    titles = [title for title in _COLUMNS if title not in left_out]
    cells = [[row.get(title, NOTHING) for title in titles] for row in rows]
    return Table(titles, cells, f"ll{'r' * (len(titles) - 2)}")


def describe_table(content: Mapping[str, Any]) -> str:
    """Return what the columns of the table mean.

    Args:
        content: of ``ablation.json``.
    """
    if has_velocity(content):
        measured = [variant["velocity"] for variant in content["variants"] if "velocity" in variant]
        prompts = counted(max(len(velocity["prompts"]) for velocity in measured), "prompt")
        interval = ", ± its 95% interval" if any("interval" in velocity for velocity in measured) else ""
        harm = f"Harm is the squared velocity error, which is a mean over {prompts}{interval}."
    else:
        harm = "Harm is the squared relative error of all weights."
    front = "The front is the Pareto front: the variants that no other one equals or beats in both bytes and error."
    keys = {key for variant in content["variants"] for key in _summary(variant)}
    images = [text for key, _, _, text in _IMAGE_FIGURES if key in keys]
    return " ".join([f"The variant with the least harm per GB saved comes first. {harm} {front}", *images])


def list_failures(content: Mapping[str, Any]) -> list[str]:
    """Return what was not measured, and why, a line each.

    Args:
        content: of ``ablation.json``.
    """
    failed = [f"{variant['name']}: {reason}" for variant in content["variants"] for reason in _failures(variant)]
    return [*failed, *(f"not measured: {name}: {reason}" for name, reason in content.get("not_measured", {}).items())]


def list_methods(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return title and text of each method.

    Args:
        content: of ``ablation.json``.
    """
    methods = content["methods"]
    found = [(title, methods[key]) for key, title in _METHODS.items() if key in methods]
    return [*found, *((_IMAGE_METHODS.get(key, key), text) for key, text in methods.get("images", {}).items())]


def _cells(variant: ComparedVariant, *, with_interval: bool) -> dict[str, object]:
    content, harm = variant.content, variant.harm_per_gb
    return {
        _MARK: Figure(", ".join(_marks(variant))),
        _BYTES: size(variant.bytes),
        _SAVED: size(variant.saved) if variant.saved >= 0 else Figure(f"-{size(-variant.saved)}"),
        _MODULES: count(content["quantized_modules"]),
        _RATIO: decimal(content["weights"]["sqnr_db"], 2),
        _VELOCITY: _velocity(content.get("velocity"), with_interval=with_interval),
        **_image_cells(_summary(content)),
        _HARM: NOTHING if harm is None else Figure(f"{harm:.3g}"),
    }


def _image_cells(summary: Mapping[str, Any]) -> dict[str, object]:
    return {title: decimal(summary.get(key), digits) for key, title, digits, _ in _IMAGE_FIGURES}


def _originals(content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield name and cells of the original, and of the original with a second seed, if it was drawn."""
    rates = by_prompt(content.get("original_images", ()), "cer")
    own = {"cer": fmean(rates.values())} if rates else {}
    yield "Original", {_MARK: "", _BYTES: size(content["unquantized_bytes"]), **_image_cells(own)}
    if "baseline" in content:
        yield "Original, second seed", {_MARK: "", **_image_cells(content["baseline"]["summary"])}


def _order(variant: ComparedVariant) -> tuple[float, str]:
    """Variants without a figure come last."""
    return (math.inf if variant.harm_per_gb is None else variant.harm_per_gb), variant.name


def _velocity(velocity: Mapping[str, Any] | None, *, with_interval: bool) -> Figure:
    if velocity is None:
        return NOTHING
    if "interval" not in velocity or not with_interval:
        return decimal(velocity["error"], 4)
    least, most = velocity["interval"]
    return Figure(f"{velocity['error']:.4f}{_SPACE}±{_SPACE}{(most - least) / 2:.4f}")


def _summary(variant: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = variant.get("images", {}).get("summary", {})
    return found


def _marks(variant: ComparedVariant) -> Iterator[str]:
    if variant.is_recipe:
        yield "recipe"
    if variant.is_release:
        yield "this release"
    if variant.is_on_front:
        yield "front"


def _failures(variant: Mapping[str, Any]) -> Iterator[str]:
    for level, reason in variant.get("failed", {}).items():
        yield f"{level} failed: {reason if len(reason) <= _REASON_LIMIT else reason[: _REASON_LIMIT - 1] + '…'}"
