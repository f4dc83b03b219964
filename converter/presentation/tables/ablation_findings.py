"""What the figures of an ablation support, in sentences.

A difference is claimed only where its interval over prompts excludes zero. Otherwise the sentence says how large it can
be, or that there are too few prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.errors import printable
from converter.measurement.evidence.ablation import by_prompt, paired
from converter.measurement.evidence.statistics import MeanInterval, mean_interval
from converter.presentation.tables.ablation_variants import ComparedVariant, compare_variants, has_velocity
from converter.presentation.tables.figures import counted, size

#: Longest name in a sentence, in characters, and most names in a row.
_NAME_LIMIT = 60
_MOST_NAMES = 8

Content = Mapping[str, Any]


@dataclass(frozen=True)
class _Measure:
    """A figure that variants are compared by."""

    level: str
    key: str
    noun: str
    unit: str = ""


_MEASURES = (
    _Measure("velocity", "error", "the velocity error"),
    _Measure("images", "periodic_grid_added", "the added periodic pattern", " grey levels"),
    _Measure("images", "cer", "the character error rate"),
)


def describe_findings(content: Content) -> list[str]:
    """Return what may be said of an ablation, each a whole sentence or two.

    Args:
        content: of ``ablation.json``.
    """
    variants = compare_variants(content)
    recipe, more = variants[0], _quantizes_more(variants)
    found = list(_of_kept(content, recipe, more) if more is not None else _of_smaller(recipe, variants[1:]))
    for dtype, alone in _alone(variants).items():
        found += _of_families(dtype, alone, uses_velocity=has_velocity(content))
    if found and not has_velocity(content):
        found.append("Only the weights were measured; their errors do not say what they do to images.")
    return found


def _quantizes_more(variants: Sequence[ComparedVariant]) -> ComparedVariant | None:
    """Return the variant with the most modules that quantizes what the recipe does in the same way, and more."""
    recipe = variants[0].content
    found = [
        variant
        for variant in variants[1:]
        if variant.content["quantized_modules"] > recipe["quantized_modules"]
        and _how(variant.content) == _how(recipe)
        and all(_covers(*counts) for counts in zip(_counts(variant.content), _counts(recipe), strict=True))
    ]
    return max(found, key=lambda variant: variant.content["quantized_modules"], default=None)


def _how(variant: Content) -> tuple[Any, Any]:
    """Return the options by which modules are quantized, whichever they are."""
    options = {key: value for key, value in variant["recipe"]["sdnq"].items() if key != "modules_to_not_convert"}
    return options, variant["recipe"].get("rounding")


def _counts(variant: Content) -> list[dict[str, int]]:
    """Return the numbers of quantized modules by dtype, by family and by block."""
    weights = variant["weights"]
    groups = [{group["name"]: group["modules"] for group in weights[key]} for key in ("families", "blocks")]
    return [dict(variant["dtypes"]), *groups]


def _covers(counts: Mapping[str, int], others: Mapping[str, int]) -> bool:
    return all(counts.get(name, 0) >= number for name, number in others.items())


def _of_kept(content: Content, recipe: ComparedVariant, more: ComparedVariant) -> Iterator[str]:
    """Yield what it does to quantize what the recipe keeps."""
    families, others = (_counts(variant.content)[1] for variant in (more, recipe))
    names = [name for name, number in families.items() if number > others.get(name, 0)]
    what = _listed(names) if names else "more modules"
    saved = recipe.bytes - more.bytes
    saving = f", and saves another {size(saved)}" if saved > 0 else ""
    yield f"{_name(more)} also quantizes {what}, which {_name(recipe)} keeps{saving}."
    for measure in _MEASURES:
        difference = paired(_values(more, measure), _values(recipe, measure))
        if difference is not None:
            compared = _second_seed(content, measure)
            yield " ".join(filter(None, (_claim(difference, measure), compared)))
    if not has_velocity(content) and None not in (more.error, recipe.error):
        errors = f"{more.error:.3g} with them quantized, and {recipe.error:.3g} without"
        yield f"The relative error of all weights is {errors}."


def _of_smaller(recipe: ComparedVariant, others: Sequence[ComparedVariant]) -> Iterator[str]:
    """Yield how the recipe compares with the best variant that has other tensors and takes no more bytes."""
    digest = recipe.content["sha256"]
    other_tensors = [other for other in others if other.content["sha256"] != digest and other.error is not None]
    fitting = [other for other in other_tensors if other.bytes <= recipe.bytes]
    best = min(fitting, key=lambda other: (other.error or 0.0, other.bytes), default=None)
    difference = paired(_values(best, _MEASURES[0]), _values(recipe, _MEASURES[0])) if best is not None else None
    if best is None or difference is None:
        return
    text = (
        f"Of {counted(len(fitting), 'variant')} that {'is' if len(fitting) == 1 else 'are'} not larger than "
        f"{_name(recipe)}, {_name(best)} has the smallest velocity error, {best.error:.3g}. That of {_name(recipe)} is "
        f"{recipe.error:.3g}"
    )
    yield f"{text}{_precision(difference)}."


def _values(variant: ComparedVariant, measure: _Measure) -> dict[str, float]:
    return by_prompt(variant.content.get(measure.level, {}).get("prompts", ()), measure.key)


def _claim(found: MeanInterval, measure: _Measure) -> str:
    noun, unit, prompts = measure.noun, measure.unit, counted(found.count, "prompt")
    if found.interval is None:
        few = f"{prompts} {'is' if found.count == 1 else 'are'} too few for an interval"
        change = f"{abs(found.mean):.3g}{unit} {'larger' if found.mean > 0 else 'smaller'}"
        return f"With them quantized, {noun} is {change if found.mean else 'the same'}; {few}."
    least, most = found.interval
    if least == most == 0:
        return f"With them quantized, {noun} is the same for each of {prompts}."
    if least <= 0 <= most:
        return (
            f"No difference in {noun} was found over {prompts}: at this precision, quantizing them makes it at most "
            f"{most:.3g}{unit} larger, and at most {-least:.3g}{unit} smaller (95% interval)."
        )
    verb, (nearer, farther) = ("raises" if least > 0 else "lowers"), sorted(map(abs, found.interval))
    ends = f"95% interval {nearer:.3g} to {farther:.3g}"
    return f"Quantizing them {verb} {noun} by {abs(found.mean):.3g}{unit}, {ends}, over {prompts}."


def _second_seed(content: Content, measure: _Measure) -> str:
    """Return how much the same figure differs between two seeds of the original; empty where it was not measured."""
    if measure.level != "images" or "baseline" not in content:
        return ""
    seeds = by_prompt(content["baseline"]["prompts"], measure.key)
    own = by_prompt(content.get("original_images", ()), measure.key)
    # A pattern is one that the original's image does not have.
    difference = paired(seeds, own) if measure.key == "cer" else mean_interval([*seeds.values()]) if seeds else None
    if difference is None:
        return ""
    ends = "" if difference.interval is None else f", 95% interval {_ends(difference.interval)}"
    over = counted(difference.count, "prompt")
    return f"For comparison: a second seed of the original changes it by {difference.mean:+.3g}{ends}, over {over}."


def _alone(variants: Sequence[ComparedVariant]) -> dict[str, dict[str, ComparedVariant]]:
    """Return the variants in which one family alone is quantized, by dtype and by the name of the family."""
    found: dict[str, dict[str, ComparedVariant]] = {}
    for variant in variants:
        counts = _counts(variant.content)
        families = [name for name, number in counts[1].items() if number]
        dtypes = [name for name, number in counts[0].items() if number]
        if len(families) == len(dtypes) == 1 and variant.error is not None:
            found.setdefault(dtypes[0], {}).setdefault(families[0], variant)
    return {dtype: alone for dtype, alone in found.items() if len(alone) > 1}


def _of_families(dtype: str, alone: Mapping[str, ComparedVariant], *, uses_velocity: bool) -> Iterator[str]:
    """Yield which family does the most harm alone, and which one for each GB that it saves."""
    error = "velocity error" if uses_velocity else "error of the weights"
    (first, worst), (second, other), *_ = sorted(alone.items(), key=lambda item: -(item[1].error or 0))
    text = (
        f"Of {len(alone)} families quantized alone ({printable(dtype, _NAME_LIMIT)}), {_short(first)} has the largest "
        f"{error}, {worst.error:.3g}; {_short(second)} follows with {other.error:.3g}"
    )
    difference = paired(_values(worst, _MEASURES[0]), _values(other, _MEASURES[0]))
    yield f"{text}{_precision(difference) if difference is not None else ''}."
    rates = {name: variant.harm_per_gb for name, variant in alone.items() if variant.harm_per_gb is not None}
    if len(rates) > 1:
        (first, most), (second, next_most), *_ = sorted(rates.items(), key=lambda item: -item[1])
        yield (
            f"For each GB saved, {_short(first)} has the largest squared {error} as measured, {most:.3g}; "
            f"{_short(second)} follows with {next_most:.3g}."
        )


def _precision(difference: MeanInterval) -> str:
    prompts = counted(difference.count, "prompt")
    if difference.interval is None:
        return f" ({prompts} {'is' if difference.count == 1 else 'are'} too few for an interval)"
    least, most = difference.interval
    verdict = "" if not least <= 0 <= most else ", so no difference was found"
    return f" (95% interval of the difference {_ends(difference.interval)}, over {prompts}{verdict})"


def _ends(interval: tuple[float, float]) -> str:
    return " to ".join(f"{end:.3g}" for end in interval)


def _listed(names: Sequence[str]) -> str:
    shown = [_short(name) for name in names[:_MOST_NAMES]]
    if len(names) > _MOST_NAMES:
        shown.append(f"{len(names) - _MOST_NAMES} more")
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else shown[0]


def _name(variant: ComparedVariant) -> str:
    return f"“{_short(variant.name)}”"


def _short(name: str) -> str:
    return printable(name, _NAME_LIMIT)
