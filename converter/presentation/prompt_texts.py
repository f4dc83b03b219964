"""The prompts of a benchmark in full, from the measurements or from the suite that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.errors import EvidenceError
from converter.measurement.evidence.names import MATRIX_NAME
from converter.measurement.prompts.suite import builtin_suites, read_suite

#: Rows of a matrix and prompts of a suite are the same if they agree in these.
_KEYS = ("id", "scenario", "seed")


def find_prompt_texts(matrix: Mapping[str, Any] | None, suite: str | None) -> dict[str, str]:
    """Return prompts by the ids of a matrix; unknown prompts are left out.

    Args:
        matrix: content of ``comparison_matrix.json``; its rows may have a ``prompt``.
        suite: name or file of the suite that was measured, which must have every row; by default the built-in suites
            are used for the rows that they have.

    Raises:
        MissingInput: the suite cannot be read.
        SuiteError: it is malformed.
        EvidenceError: the suite differs from what was measured.
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
                f"prompt {row['id']}, seed {row['seed']}, differs from the suite {suite}",
                "Give --prompts the suite that was measured, or omit it.",
            )
        found[row["id"]] = row.get("prompt", text)
    return {key: text for key, text in found.items() if text}
