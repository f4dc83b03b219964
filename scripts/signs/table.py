"""The table of what recipes do to the model, for docs/signs.md."""

from __future__ import annotations

from typing import Any


def markdown_table(found: dict[str, Any]) -> str:
    """The table of the docs, from what this script has measured."""
    lines = [
        "| model | exact | legible | CER | levels | periodic score | velocity error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["models"]:
        figures = [f"{row['exact_percent']:.0f} %", f"{row['legible_percent']:.0f} %"]
        figures.append(f"{row['character_error_rate']:.3f}")
        for name, digits in (("levels_difference", 2), ("periodic_score", 2), ("velocity_error", 4)):
            figures.append(f"{row[name]:.{digits}f}" if name in row else "")
        lines.append(f"| {row['model']} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"
