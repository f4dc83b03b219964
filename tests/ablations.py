"""Contents of ``ablation.json`` for tests, whose figures are made up and agree."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import ttest_1samp

Content = dict[str, Any]
WEIGHTS = {"name": "diffusion_pytorch_model.safetensors", "bytes": 4096, "sha256": "a" * 64}
ORIGINAL = {"repo_id": "owner/Source", "transformer": [WEIGHTS]}
METHODS = {
    "weights": "energy over noise of all weights",
    "velocity": "relative error of the denoiser's output, before guidance",
    "images": {"psnr_db": "as defined"},
    "interval": "Student's t over prompts, 95 %",
}
#: Modules, bytes without quantization, and noise over energy in uint4 of the families of a model like Lens.
FAMILIES = {
    "attn": (192, 2_516_582_400, 6e-3),
    "img_mlp": (144, 1_207_959_552, 7e-3),
    "img_mod": (48, 1_358_954_496, 4e-3),
    "txt_mlp": (96, 1_811_939_328, 8e-3),
    "txt_mod": (48, 905_969_664, 5e-3),
}
_EMBED = 50_331_648
#: Bytes of a quantized weight over those in bfloat16, and its noise over that of uint4.
DTYPES = {"uint4": (0.2656, 1.0), "int8": (0.5156, 1 / 260)}
UNQUANTIZED = sum(size for _, size, _ in FAMILIES.values()) + _EMBED


def variant(name: str, quantized: Sequence[str], dtype: str = "uint4", rounding: str = "") -> Content:
    """A variant in which these families are quantized, with what is known of its weights."""
    ratio, factor = DTYPES[dtype]
    families, noises, total = [], [], 0.0
    for family, (modules, size, noise) in FAMILIES.items():
        is_quantized = family in quantized
        taken = round(size * ratio) if is_quantized else size
        part = noise * factor if is_quantized else 1e-6
        noises.append(part * size)
        families.append(_group(family, modules * is_quantized, taken, part))
        total += size
    families.append(_group("embed", 0, _EMBED, None))
    modules, size = (sum(family[key] for family in families) for key in ("modules", "bytes"))
    recipe: Content = {"name": name, "sdnq": {"weights_dtype": dtype}, "rules": []}
    return {
        "name": name,
        "sha256": hashlib.sha256(f"{sorted(quantized)} {dtype} {rounding}".encode()).hexdigest(),
        "bytes": size,
        "quantized_modules": modules,
        "dtypes": {dtype: modules} if modules else {},
        "recipe": recipe | ({"rounding": rounding} if rounding else {}),
        "weights": {
            "sqnr_db": round(-10 * math.log10(sum(noises) / total), 4),
            "sqnr_db_min": round(-10 * math.log10(max(noises) / total) - 9, 4),
            "cosine_min": 0.99,
            "families": families,
            "blocks": [_group("transformer_blocks.0", modules, size - _EMBED, sum(noises) / total)],
        },
    }


def _group(name: str, modules: int, size: int, noise: float | None) -> Content:
    ratio = None if noise is None else round(-10 * math.log10(noise), 4)
    return {"name": name, "modules": modules, "bytes": size, "sqnr_db": ratio, "cosine": 0.995}


def content(*variants: Content) -> Content:
    """Content of the file, of a model whose weights alone were measured."""
    return {
        "schema": "lensconv.ablation/1",
        "sources": {"original": {**ORIGINAL, "transformer": [dict(WEIGHTS)]}},
        "component": "transformer",
        "class_name": "LensTransformer2DModel",
        "unquantized_bytes": UNQUANTIZED,
        "versions": {"lensconv": "1.2.3"},
        "methods": dict(METHODS),
        "variants": list(variants),
    }


def with_velocity(found: Content, errors: Mapping[str, Sequence[float]]) -> Content:
    """The same with velocity errors, one for each prompt, by the name of the variant; the first is the recipe."""
    own = errors.get(found["variants"][0]["name"])
    for made in found["variants"]:
        if made["name"] in errors:
            values = errors[made["name"]]
            rows = [
                {"id": f"P{number:02}", "error": fmean(calls), "calls": calls}
                for number, calls in enumerate(([value * 1.25, value * 0.75] for value in values), 1)
            ]
            made["velocity"] = {"error": fmean(values), **interval(values), "prompts": rows}
            if own is not None and made is not found["variants"][0]:
                pairs = [value - other for value, other in zip(values, own, strict=False)]
                made["velocity"]["against_recipe"] = difference(pairs)
    return found


def interval(values: Sequence[float]) -> dict[str, list[float]]:
    """The interval of a mean, by scipy; none for fewer than three values."""
    if len(values) < 3:
        return {}
    if np.ptp(values) < 1e-9:
        return {"interval": [fmean(values)] * 2}
    return {"interval": [float(end) for end in ttest_1samp(values, 0).confidence_interval(0.95)]}


def difference(values: Sequence[float]) -> Content:
    return {"prompts": len(values), "difference": fmean(values), **interval(values)}


def image_row(name: str, seed: int, image: str, **figures: float | None) -> Content:
    """What is known of one image."""
    return {
        "id": name,
        "seed": seed,
        "image": image,
        "image_sha256": "b" * 64,
        "identical": False,
        "psnr_db": 30.0,
        "ssim": 0.9,
        "periodic_grid_added": 0.0,
        **figures,
    }


def images(rows: Sequence[Content], recipe: Sequence[Content] = ()) -> Content:
    """Images with their means, and their differences from those of the recipe."""
    figures = ("psnr_db", "ssim", "periodic_grid_added", "cer")
    measured = {key: [row[key] for row in rows if row.get(key) is not None] for key in figures}
    found: Content = {"summary": {key: fmean(values) for key, values in measured.items() if values}}
    if recipe:
        pairs = {
            key: [row[key] - other[key] for row, other in zip(rows, recipe, strict=True) if key in row]
            for key in measured
            if measured[key]
        }
        found["against_recipe"] = {key: difference(values) for key, values in pairs.items()}
    return {**found, "prompts": list(rows)}


def with_images(
    found: Content, figures: Mapping[str, Sequence[Sequence[float]]], originals: Sequence[float], second: Any = None
) -> Content:
    """The same with images: pattern and character error rate of each prompt, by the name of the variant.

    Args:
        found: the content.
        figures: pairs by the name of the variant.
        originals: character error rates of the original.
        second: pairs of the original with a second seed; none by default.
    """

    def rows(folder: str, pairs: Sequence[Sequence[float]], shift: int = 0) -> list[Content]:
        return [
            image_row(f"P{n:02}", 300 + n + shift, f"images/{folder}/P{n:02}-{300 + n + shift}.png",
                      periodic_grid_added=pattern, cer=rate)
            for n, (pattern, rate) in enumerate(pairs, 1)
        ]  # fmt: skip

    first = found["variants"][0]["name"]
    for number, made in enumerate(found["variants"]):
        if made["name"] in figures:
            of_recipe = rows("ablation/0", figures[first]) if first in figures else []
            made["images"] = images(rows(f"ablation/{number}", figures[made["name"]]), of_recipe)
    keys = ("id", "seed", "image", "image_sha256")
    found["original_images"] = [
        {**{key: row[key] for key in keys}, "cer": rate}
        for row, rate in zip(rows("original", [(0, 0)] * len(originals)), originals, strict=True)
    ]
    if second is not None:
        found["baseline"] = images(rows("baseline", second, 1000))
    return found


def builtin(prompts: int = 5) -> Content:
    """The variants that are built in, for a model like Lens, with velocity errors that follow from the weights."""
    families = list(FAMILIES)
    made = [
        variant("lens-uint4-static", ["attn", "img_mlp", "txt_mlp"]),
        variant("uint4, all linear", families),
        *(variant(f"uint4, all but {name}", [other for other in families if other != name]) for name in families),
        *(variant(f"uint4, {name} alone", [name]) for name in families),
        variant("int8, all linear", families, "int8"),
        *(variant(f"int8, {name} alone", [name], "int8") for name in families),
    ]
    harm = {"attn": 4e-3, "img_mlp": 2e-3, "img_mod": 9e-4, "txt_mlp": 5e-4, "txt_mod": 1.2e-4}
    spread = np.random.default_rng(0).normal(1, 0.08, (len(made), prompts))
    errors = {}
    for row, one in zip(spread, made, strict=True):
        dtype = one["recipe"]["sdnq"]["weights_dtype"]
        quantized = [family["name"] for family in one["weights"]["families"] if family["modules"]]
        error = math.sqrt(sum(harm[name] for name in quantized) * DTYPES[dtype][1])
        errors[one["name"]] = [round(float(error * factor), 6) for factor in row]
    return with_velocity(content(*made), errors)


def draw_images(folder: Path, found: Content, size: tuple[int, int] = (96, 64)) -> Content:
    """Write the images that a content names, and put their checksums into it."""
    parts = [found.get("baseline", {}), *(made.get("images", {}) for made in found["variants"])]
    rows = [row for rows in (found["original_images"], *(part.get("prompts", ()) for part in parts)) for row in rows]
    for row in rows:
        file = folder / row["image"]
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn = [row["id"], row["seed"], row.get("periodic_grid_added"), row.get("cer")]
        color = tuple(hashlib.sha256(repr(drawn).encode()).digest()[:3])
        Image.new("RGB", size, color).save(file)
        row["image_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def resized(found: Content, number: int, total: int) -> Content:
    """The same with other sizes: one variant takes so many bytes."""
    ratio = total / found["variants"][number]["bytes"]
    for made in found["variants"]:
        groups = made["weights"]["families"]
        for group in (*groups, *made["weights"]["blocks"]):
            group["bytes"] = int(group["bytes"] * ratio)
        made["bytes"] = sum(group["bytes"] for group in groups)
    last, chosen = found["variants"][number]["weights"]["families"][-1], found["variants"][number]
    last["bytes"] += total - chosen["bytes"]
    chosen["bytes"] = total
    found["unquantized_bytes"] = int(found["unquantized_bytes"] * ratio)
    return found
