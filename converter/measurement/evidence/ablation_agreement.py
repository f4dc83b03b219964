"""Whether the figures of ``ablation.json`` agree with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from converter.measurement.evidence.ablation import image_figures, velocity_figures
from converter.measurement.evidence.differences import differences

#: Figures that no measurement exceeds, so that none of them overflows: of a ratio in dB, and of anything else.
_MOST_DECIBELS, _MOST = 1e3, 1e20
#: What may contain any number.
_FREE = ("recipe", "settings", "environment")
#: How far figures with six digits may be off once others are computed from them: in relation to the largest figure,
#: and at least.
_RELATIVE, _LEAST = 1e-5, 2e-6
#: The same for ratios in dB.
_DECIBEL_ROUNDING = 0.01
#: Fields of a variant that follow from its weights.
_FIGURES = ("bytes", "quantized_modules", "dtypes", "weights", "velocity")
#: Fields of an image that its figures do not depend on.
_FILE = ("image", "image_sha256")
#: Levels that a variant may lack.
_LEVELS = ("velocity", "images")


def ablation_disagreements(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the contradictions in ``ablation.json``, whose content fits its schema."""
    too_large = list(_too_large(content, ""))
    yield from too_large
    if too_large:
        return
    variants = content["variants"]
    yield from _repeated("variant", (variant["name"] for variant in variants))
    yield from (f"variant {number}: name is empty" for number, found in enumerate(variants, 1) if not _has_name(found))
    if content["unquantized_bytes"] == 0:
        yield "unquantized_bytes is 0"
    yield from _check_methods(content)
    originals = content.get("original_images", [])
    yield from _repeated("original_images: prompt", (row["id"] for row in originals))
    seeds = {row["id"]: row["seed"] for row in originals}
    for variant in variants:
        where = f"variant {variant['name']}"
        yield from _check_weights(where, variant)
        failed = [level for level in variant.get("failed", ()) if level in variant]
        yield from (f"{where}: {level} failed, but is present" for level in failed)
        if "velocity" in variant:
            yield from _check_velocity(f"{where}: velocity", variant["velocity"], variants[0].get("velocity", {}))
        if "images" in variant:
            images, of_recipe = variant["images"], variants[0].get("images", {})
            yield from _check_images(f"{where}: images", images, of_recipe.get("prompts", ()))
            yield from _check_seeds(f"{where}: images", images["prompts"], seeds, is_same=True)
    if "baseline" in content:
        yield from _check_images("baseline", content["baseline"], ())
        yield from _check_seeds("baseline", content["baseline"]["prompts"], seeds, is_same=False)
    yield from _check_equal_digests(variants)


def _too_large(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _FREE:
                yield from _too_large(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _too_large(item, f"{path}.{index}")
    elif isinstance(value, float | int):
        most = _MOST_DECIBELS if path.rpartition(".")[2].startswith("sqnr_db") else _MOST
        if abs(value) > most:
            yield f"{path} is larger than anything that can be measured"


def _repeated(what: str, names: Iterable[str]) -> Iterator[str]:
    yield from (f"{what} {name} is listed {count} times" for name, count in Counter(names).items() if count > 1)


def _has_name(variant: Mapping[str, Any]) -> bool:
    return bool(variant["name"].strip())


def _check_equal_digests(variants: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Variants with the same tensors have the same figures, as far as both were measured."""
    firsts: dict[str, Mapping[str, Any]] = {}
    for variant in variants:
        first = firsts.setdefault(variant["sha256"], variant)
        ours, theirs = _figures(variant), _figures(first)
        for key in ours.keys() & theirs.keys():
            if ours[key] != theirs[key]:
                yield f"variants {first['name']} and {variant['name']} have one sha256, but not the same {key}"


def _figures(variant: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: variant[key] for key in _FIGURES if key in variant}
    if "velocity" in found:
        # The recipe that is examined is not compared with itself.
        found["velocity"] = {key: value for key, value in found["velocity"].items() if key != "against_recipe"}
    if "images" in variant:
        # Each variant has files of its own, which may say whose they are.
        rows = [{key: value for key, value in row.items() if key not in _FILE} for row in variant["images"]["prompts"]]
        found["images"] = sorted(rows, key=lambda row: str(row["id"]))
    return found


def _check_methods(content: Mapping[str, Any]) -> Iterator[str]:
    for level in _LEVELS:
        if level not in content["methods"] and any(level in variant for variant in content["variants"]):
            yield f"methods.{level} is missing"


def _check_weights(where: str, variant: Mapping[str, Any]) -> Iterator[str]:
    if variant["bytes"] == 0:
        yield f"{where}: bytes is 0"
    modules, by_dtype = variant["quantized_modules"], sum(variant["dtypes"].values())
    if modules != by_dtype:
        yield f"{where}: quantized_modules is {modules}, but its dtypes add up to {by_dtype}"
    weights = variant["weights"]
    for key in ("families", "blocks"):
        yield from _repeated(f"{where}: {key}:", (group["name"] for group in weights[key]))
    for key, total in (("modules", modules), ("bytes", variant["bytes"])):
        # Not every tensor is part of a block.
        for groups, is_whole in (("families", True), ("blocks", False)):
            added = sum(group[key] for group in weights[groups])
            if weights[groups] and (added != total if is_whole else added > total):
                yield f"{where}: {key} is {total}, but its {groups} add up to {added}"
    yield from _check_ratio(where, weights)


def _check_ratio(where: str, weights: Mapping[str, Any]) -> Iterator[str]:
    """The ratio of all weights is between the lowest and the highest of the families, of which null may be infinite."""
    whole, ratios = weights["sqnr_db"], [family["sqnr_db"] for family in weights["families"]]
    finite = [ratio for ratio in ratios if ratio is not None]
    if whole is None or not finite:
        return
    is_too_high = None not in ratios and whole > max(finite) + _DECIBEL_ROUNDING
    if whole < min(finite) - _DECIBEL_ROUNDING or is_too_high:
        yield f"{where}: weights.sqnr_db is {whole}, but its families have {min(finite)} to {max(finite)}"


def _check_velocity(where: str, velocity: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[str]:
    rows = velocity["prompts"]
    yield from _repeated(f"{where}: prompt", (row["id"] for row in rows))
    for row in rows:
        scale = max(row["calls"])
        yield from differences(
            f"{where}: {row['id']}.error", row["error"], fmean(row["calls"]), "its calls give", _tolerance([scale])
        )
    shown = {key: value for key, value in velocity.items() if key != "prompts"}
    figures = [row["error"] for row in (*rows, *recipe.get("prompts", ()))]
    computed = velocity_figures(rows, recipe.get("prompts", ()))
    yield from differences(where, shown, computed, "its prompts give", _tolerance(figures))


def _check_images(where: str, images: Mapping[str, Any], recipe: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    rows, recipe = images["prompts"], list(recipe)
    yield from _repeated(f"{where}: prompt", (row["id"] for row in rows))
    for row in rows:
        if row["identical"] != (row["psnr_db"] is None):
            yield f"{where}: {row['id']}: identical is {row['identical']}, but psnr_db is {row['psnr_db']}"
    computed = image_figures(rows, recipe)
    missing = computed["summary"].keys() - images["summary"].keys()
    yield from (f"{where}: summary.{figure} is missing" for figure in sorted(missing))
    for part in ("summary", "against_recipe"):
        for figure, shown in images.get(part, {}).items():
            figures = [row[figure] for row in (*rows, *recipe) if row.get(figure) is not None]
            expected = computed[part].get(figure)
            name = f"{where}: {part}.{figure}"
            yield from differences(name, shown, expected, "its prompts give", _tolerance(figures))


def _check_seeds(
    where: str, rows: Iterable[Mapping[str, Any]], seeds: Mapping[str, int], *, is_same: bool
) -> Iterator[str]:
    """Images are compared with one of the original that has the same prompt, and the same seed or another."""
    for row in rows:
        name, seed = row["id"], row["seed"]
        if name not in seeds:
            yield f"{where}: prompt {name} is not in original_images"
        elif (seed == seeds[name]) != is_same:
            yield f"{where}: prompt {name} has seed {seed}, and {seeds[name]} in original_images"


def _tolerance(figures: Iterable[float]) -> float:
    return max(_LEAST, _RELATIVE * max(map(abs, figures), default=0.0))
