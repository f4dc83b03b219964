"""What templates may use of an ablation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.presentation.card.pictures import CardPictures
from converter.presentation.card.table_markdown import to_markdown
from converter.presentation.tables.ablation import ablation_table, describe_table, list_failures, list_methods
from converter.presentation.tables.ablation_findings import describe_findings


def describe_ablation(
    content: Mapping[str, Any] | None, variant: str, said: str, pictures: CardPictures
) -> dict[str, Any] | None:
    """Return what templates may use of an ablation; None if there is none.

    Args:
        content: of ``ablation.json``.
        variant: name of the variant that has the weights of the release.
        said: what an older summary says that an ablation found.
        pictures: those of the card.
    """
    if content is None and not said:
        return None
    measured: dict[str, Any] = {"said": said, "table": None}
    if content is not None:
        measured |= {
            "variant": variant,
            "recipe": content["variants"][0]["name"],
            "table": to_markdown(ablation_table(content, variant)),
            "legend": describe_table(content),
            "findings": describe_findings(content),
            "failures": list_failures(content),
            "methods": list_methods(content),
            "chart": pictures.ablation_chart,
            "sheet": pictures.ablation_sheet,
        }
    return measured
