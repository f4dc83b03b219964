"""The LoRA adapters of a benchmark: those in the quantized model, and those that are added to the original."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from converter.console import Reporter
from converter.conversion.adapters.choice import AdapterChoice
from converter.conversion.release.manifest import MANIFEST_NAME
from converter.errors import UsageError
from converter.measurement.benchmark.repos import MeasuredRepo
from converter.measurement.generation.adapters import AddedAdapters, open_adapters
from converter.verification.adapters import differing_adapters, is_made_from, missing_adapters
from converter.verification.audit import Audit


def contained_adapters(audits: Sequence[Audit]) -> dict[str, list[dict[str, Any]]]:
    """The adapters that the weights of a release contain, by its manifest."""
    return {
        audit.name: [adapter.to_dict() for adapter in audit.described.adapters]
        for audit in audits
        if audit.described is not None and audit.described.adapters
    }


def add_to_original(
    original: MeasuredRepo, audits: Sequence[Audit], choices: Sequence[AdapterChoice], reporter: Reporter
) -> AddedAdapters:
    """Read the adapters for the original, which must be those that the quantized model contains.

    They are added to the components to which the conversion added them. Other parts of them had no effect there.

    Args:
        original: its repo.
        audits: of the components of the quantized model.
        choices: the adapters.
        reporter: is told what has no effect, and what should be given.

    Raises:
        UsageError: the manifest of the quantized model names other adapters, or none.

    Raises also what ``open_adapters`` raises.
    """
    contained = contained_adapters(audits)
    adapted = [audit for audit in audits if audit.name in contained]
    if not choices:
        made_from = [audit for audit in adapted if is_made_from(audit, original.headers.get(audit.name, ()))]
        for note in missing_adapters(made_from, "the original"):
            reporter.note(f"{note}; otherwise all figures of the difference include the effect of LoRA")
        return AddedAdapters()
    if not adapted:
        raise UsageError(
            f"--lora: the quantized repo has no {MANIFEST_NAME} that names adapters",
            "Leave --lora out, or give a release that was converted with --lora.",
        )
    added = open_adapters(original.folder, choices, [audit.name for audit in adapted])
    given = added.describe()
    for audit in adapted:
        for problem in differing_adapters(audit, given.get(audit.name, ())):
            raise UsageError(f"--lora: {problem}", "Give the same files and scales in the same order.")
    for note in added.notes:
        reporter.note(note)
    return added
