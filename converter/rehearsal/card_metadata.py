"""What the local Hub says of the front matter of a card, in the form in which the Hub answers."""

from __future__ import annotations

from converter.front_matter import split_card
from converter.presentation.card.metadata_rules import MetadataReport, check_metadata


def check_card(card: str) -> MetadataReport:
    """Errors, for which the Hub refuses the card, and warnings.

    Args:
        card: the text of README.md.
    """
    front, _ = split_card(card)
    if not (front or "").strip():
        return MetadataReport(warnings=("empty or missing yaml metadata in repo card",))
    return check_metadata(card)
