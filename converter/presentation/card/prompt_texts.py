"""The prompts of a card in full: as they were measured, or those of a suite that is the one that was drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.errors import EvidenceError
from converter.measurement.evidence.names import MATRIX_NAME
from converter.measurement.prompts.suite import builtin_suites, read_suite

#: Rows of a matrix and prompts of a suite are the same if they agree in these.
_KEYS = ("id", "scenario", "seed")


def find_prompt_texts(matrix: Mapping[str, Any] | None, suite: str | None) -> dict[str, str]:
    """Prompts by the ids of a matrix; those that nobody tells are left out.

    Args:
        matrix: what was measured; its rows may have a ``prompt``.
        suite: name or file of the suite that was drawn, which must have every row; where none is named, a built-in one
            is used for the rows that it has.

    Raises:
        MissingInput: the suite cannot be read.
        SuiteError: it is malformed.
        EvidenceError: it is not what was drawn.
    """
    if matrix is None:
        return {}
    named = read_suite(suite) if suite is not None else None
    suites = (named,) if named is not None else builtin_suites()
    known = {(entry.id, entry.scenario, entry.seed): entry.prompt for held in suites for entry in held.prompts}
    found = {}
    for row in matrix["prompts"]:
        text = known.get(tuple(row[key] for key in _KEYS), "")
        if named is not None and text != row.get("prompt", text or None):
            raise EvidenceError(
                MATRIX_NAME,
                f"prompt {row['id']}, seed {row['seed']}, is not as in the suite {suite}",
                "Name with --prompts the suite that was drawn, or none.",
            )
        found[row["id"]] = row.get("prompt", text)
    return {key: text for key, text in found.items() if text}
