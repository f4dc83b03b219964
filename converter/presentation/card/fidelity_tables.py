"""Tables of a card: how far images and weights are from the original's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.presentation.card.figures import NOTHING, count, decimal, percent
from converter.presentation.card.markdown import Markdown, code, table

#: Key, title and digits of each measure of a pair of images.
_MEASURES = (
    ("psnr_db", "PSNR, dB", 2),
    ("ssim", "SSIM", 4),
    ("lpips", "LPIPS", 4),
    ("periodic_grid_added", "Added periodic grid, grey levels", 2),
)


def images_summary_table(images: Mapping[str, Any]) -> Markdown:
    """Each measure over all prompts, beside that of the original with another seed.

    Args:
        images: content of ``image_fidelity.json``.
    """
    summary, baseline = images["summary"], images["summary"]["baseline"]
    rows = []
    for key, title, digits in _MEASURES:
        found, other = summary[key], (baseline or {}).get(key)
        if found is not None:
            shown = [decimal(found[part], digits) for part in ("mean", "median", "min", "max")]
            rows.append([title, *shown, decimal(other["mean"], digits) if other else NOTHING])
    columns = ["Quantized against original", "mean", "median", "least", "most", "original, other seed: mean"]
    return table(columns, rows)


def images_table(images: Mapping[str, Any]) -> Markdown:
    """Each measure of each prompt."""
    has = [key for key, _, _ in _MEASURES if images["summary"][key] is not None]
    rows = []
    for pair in images["pairs"]:
        values = {**pair, "periodic_grid_added": pair["periodic_grid"]["added"]}
        shown: list[object] = [
            "identical" if pair["identical"] and key == "psnr_db" else decimal(values[key], digits)
            for key, _, digits in _MEASURES
            if key in has
        ]
        seed = NOTHING if pair["seed"] is None else pair["seed"]
        rows.append([pair["id"], seed, f"{pair['width']}×{pair['height']}", *shown])  # noqa: RUF001 - a cross
    return table(["ID", "Seed", "Pixels", *(title for key, title, _ in _MEASURES if key in has)], rows)


def text_table(images: Mapping[str, Any]) -> Markdown | None:
    """How much of the text that prompts ask for can be read; None where nobody looked."""
    text = images["summary"]["text"]
    if text is None:
        return None
    rows = [
        ["Strings that prompts require", count(text["required_strings"]), count(text["required_strings"])],
        ["Character error rate, mean", *(decimal(text[f"{name}_cer_mean"], 3) for name in ("original", "quantized"))],
        ["Legible strings", *(percent(100 * text[f"{name}_legible"]) for name in ("original", "quantized"))],
    ]
    return table(["", "Original", "Quantized"], rows)


def weights_table(weights: Mapping[str, Any]) -> Markdown:
    """Signal to noise by family.

    Args:
        weights: content of ``weight_fidelity.json``.
    """
    rows = [
        [
            code(family["name"]),
            count(family["modules"]),
            decimal(family["sqnr_db"], 2),
            decimal(family["sqnr_db_min"], 2),
            decimal(family["cosine_min"], 6),
        ]
        for family in weights["fidelity"]["families"]
    ]
    return table(["Family", "Modules", "SQNR, dB", "Least of a module, dB", "Least cosine"], rows)
