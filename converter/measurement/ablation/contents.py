"""``ablation.json``: what was measured of each variant, as JSON values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from converter.conversion.recipe.recipe import NEAREST, Recipe, Rule
from converter.measurement.ablation.variants import Variant, block_of
from converter.measurement.comparison.report import PairFidelity
from converter.measurement.evidence.ablation import image_figures, velocity_figures
from converter.measurement.evidence.statistics import CONFIDENCE
from converter.measurement.evidence.trajectory import significant
from converter.measurement.sensitivity.figures import StorageFigures
from converter.models.families import family
from converter.verification.measures import cosine_of, finite, ratio_db

#: An image of a variant as JSON values.
Row = Mapping[str, Any]
SCHEMA_ID = "lensconv.ablation/1"
WEIGHTS_METHOD = (
    "sqnr_db: signal-to-quantization-noise ratio, 10 log10 of the source's energy over that of the error, of all "
    "tensors together, of those of a family, and of those of a block; cosine: of the angle between the restored "
    "tensors and the source, taken as one vector; sqnr_db_min and cosine_min: the lowest of a quantized module; "
    "compared with the source as it is, in float64"
)
INTERVAL_METHOD = (
    f"Student's t over prompts, {100 * CONFIDENCE:.0f} %; differences are paired by prompt; none below three prompts"
)


@dataclass
class MeasuredVariant:
    """A variant and what was measured of it."""

    variant: Variant
    digest: str
    """Of all tensors that a conversion writes."""
    figures: Mapping[str, StorageFigures]
    """Of each tensor of the source."""
    velocity: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Errors of the calls, by id of the prompt."""
    images: Sequence[Row] = ()
    """Rows of its images."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a level was not measured, by its name."""


def image_row(name: str, sha256: str, pair: PairFidelity) -> dict[str, Any]:
    """An image of a variant, and how far it is from the original's of the same prompt.

    Args:
        name: its path in the folder of measurements.
        sha256: of its file.
        pair: its comparison.
    """
    fidelity = pair.quantized
    error_rate = _mean(rates[1] for rates in pair.text_rates)
    return {
        **original_row(name, sha256, pair, error_rate),
        "identical": fidelity.identical,
        "psnr_db": _rounded(fidelity.psnr_db),
        "ssim": significant(fidelity.ssim),
        **({} if fidelity.lpips is None else {"lpips": significant(fidelity.lpips)}),
        "periodic_grid_added": _rounded(fidelity.periodic_grid.added),
    }


def original_row(name: str, sha256: str, pair: PairFidelity, error_rate: float | None = None) -> dict[str, Any]:
    """An image of the original; arguments as for ``image_row``, of its comparison with itself."""
    if error_rate is None:
        error_rate = _mean(rates[0] for rates in pair.text_rates)
    return {
        "id": pair.id,
        "seed": pair.seed,
        "image": name,
        "image_sha256": sha256,
        **({} if error_rate is None else {"cer": significant(error_rate)}),
    }


def describe_variants(measured: Sequence[MeasuredVariant]) -> list[dict[str, Any]]:
    """The variants, each compared with the first one, which is the recipe that is examined."""
    first = measured[0]
    return [_describe(one, None if one is first else first) for one in measured]


def describe_images(rows: Sequence[Row], recipe: Sequence[Row] = ()) -> dict[str, Any]:
    """Images of a variant as JSON values.

    Args:
        rows: of its images, at least one.
        recipe: those of the recipe that is examined, to compare with; none for itself.
    """
    found = {name: figures for name, figures in image_figures(rows, recipe).items() if figures}
    return {**_six_digits(found), "prompts": list(rows)}


def _describe(one: MeasuredVariant, recipe: MeasuredVariant | None) -> dict[str, Any]:
    plan = one.variant.plan
    found: dict[str, Any] = {
        "name": one.variant.name,
        "sha256": one.digest,
        "bytes": one.variant.bytes,
        "quantized_modules": len(plan.modules),
        "dtypes": dict(sorted(Counter(module.options["weights_dtype"] for module in plan.modules.values()).items())),
        "recipe": _describe_recipe(one.variant.recipe),
        "weights": _describe_weights(one),
    }
    if one.velocity:
        found["velocity"] = _describe_velocity(one.velocity, recipe.velocity if recipe else {})
    if one.images:
        found["images"] = describe_images(one.images, recipe.images if recipe else ())
    if one.failed:
        found["failed"] = one.failed
    return found


def _describe_recipe(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "sdnq": dict(recipe.options),
        "rules": [_describe_rule(rule) for rule in recipe.rules],
        **({"seed": recipe.seed} if recipe.is_random else {}),
        **({} if recipe.rounding == NEAREST else {"rounding": recipe.rounding}),
    }


def _describe_rule(rule: Rule) -> dict[str, Any]:
    """The rule as in a recipe's file."""
    selected = {"family": rule.family} if rule.family else {"match": rule.match}
    return {**selected, **({"keep": True} if rule.keep else dict(rule.options))}


def _describe_weights(one: MeasuredVariant) -> dict[str, Any]:
    class_name = one.variant.plan.class_name
    quantized = [one.figures[source] for source in one.variant.plan.modules]
    families: dict[str, list[StorageFigures]] = {}
    blocks: dict[str, list[StorageFigures]] = {}
    for source, figures in one.figures.items():
        families.setdefault(family(source, class_name), []).append(figures)
        blocks.setdefault(block_of(source), []).append(figures)
    return {
        "sqnr_db": _sqnr(one.figures.values()),
        "sqnr_db_min": _lowest(_sqnr([figures]) for figures in quantized),
        "cosine_min": _lowest(_cosine([figures]) for figures in quantized),
        "families": [_describe_group(name, found, one) for name, found in sorted(families.items())],
        # A list of single tensors, such as norms, has no blocks.
        "blocks": [_describe_group(name, found, one) for name, found in blocks.items() if name and len(found) > 1],
    }


def _describe_group(name: str, members: Sequence[StorageFigures], one: MeasuredVariant) -> dict[str, Any]:
    return {
        "name": name,
        "modules": sum(figures.source in one.variant.plan.modules for figures in members),
        "bytes": sum(figures.bytes for figures in members),
        "sqnr_db": _sqnr(members),
        "cosine": _cosine(members),
    }


def _sqnr(members: Iterable[StorageFigures]) -> float | None:
    """Of several tensors together; None if it is infinite, or a number is not finite."""
    found = list(members)
    ratio = finite(ratio_db(math.fsum(one.energy for one in found), math.fsum(one.noise for one in found)))
    return None if ratio is None else significant(ratio)


def _cosine(members: Iterable[StorageFigures]) -> float | None:
    found = list(members)
    sums = (math.fsum(getattr(one, name) for one in found) for name in ("energy", "length", "dot", "noise"))
    cosine = finite(cosine_of(*sums))
    return None if cosine is None else float(f"{cosine:.9f}")


def _lowest(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _describe_velocity(errors: Mapping[str, Sequence[float]], recipe: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    rows, others = (
        [{"id": prompt, "error": fmean(calls), "calls": list(calls)} for prompt, calls in found.items()]
        for found in (errors, recipe)
    )
    described: dict[str, Any] = _six_digits({**velocity_figures(rows, others), "prompts": rows})
    return described


def _six_digits(value: Any) -> Any:
    """The same values, with the digits that files have."""
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, Mapping):
        return {key: _six_digits(item) for key, item in value.items()}
    return [_six_digits(item) for item in value] if isinstance(value, list) else value


def _rounded(value: float | None) -> float | None:
    return None if value is None else significant(value)


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None
