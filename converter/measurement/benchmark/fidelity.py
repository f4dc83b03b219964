"""Compare images and weights of the quantized model with those of the original, after everything is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from converter.console import Reporter
from converter.errors import LensconvError, UnsupportedCheckpoint
from converter.libraries import COMPARING_BYTES, require_library_memory
from converter.measurement.benchmark.subjects import Subject
from converter.measurement.comparison.compare import Comparison
from converter.measurement.comparison.pairs import ImagePair
from converter.measurement.evidence.names import ORIGINAL, QUANTIZED
from converter.measurement.generation.adapters import AddedAdapters, open_adapters
from converter.verification.audit import Audit
from converter.verification.audited import open_audits
from converter.verification.checks import check_repo
from converter.verification.copied import is_quantized
from converter.verification.measures import Fidelity, join_fidelities
from converter.verification.report import about
from converter.verification.sources import open_sources


def compare_images(output: Path, matrix: Mapping[str, Any], reporter: Reporter) -> dict[str, Any] | None:
    """Compare the images of all prompts that both models have images of.

    Args:
        output: folder of the measurements.
        matrix: content of ``comparison_matrix.json``.
        reporter: shows progress and notes.

    Returns:
        Content of ``image_fidelity.json``; None if no prompt has images of both models.
    """
    settings = matrix["settings"]
    measured = [row for row in matrix["prompts"] if not {"failed"} & {*row[ORIGINAL], *row[QUANTIZED]}]
    rows = [row for row in measured if "image" in row[ORIGINAL] and "image" in row[QUANTIZED]]
    changed = [row["id"] for row in measured if row not in rows]
    if changed:
        reporter.note(
            f"images of {', '.join(changed)} are missing or were changed, and are left out; --mode {matrix['mode']} "
            "generates them again"
        )
    if not rows:
        reporter.note("no prompt has images of both models; images were not compared")
        return None
    pairs = [
        ImagePair(
            key=f"{row['id']}-{row['seed']}",
            id=row["id"],
            seed=row["seed"],
            steps=settings["num_inference_steps"],
            width=settings["width"],
            height=settings["height"],
            original=output / row[ORIGINAL]["image"],
            quantized=output / row[QUANTIZED]["image"],
            baseline=output / row["baseline"]["image"] if "baseline" in row else None,
            baseline_seed=row["baseline"]["seed"] if "baseline" in row else None,
        )
        for row in rows
    ]
    required = {row["id"]: row["required_text"] for row in rows}
    report = Comparison(required).compare(pairs, reporter)
    return {**report.to_dict(), "sources": matrix["sources"]}


def compare_weights(subjects: Mapping[str, Subject], reporter: Reporter) -> dict[str, Any] | None:
    """Compare the weights of every component that was quantized, by family.

    Args:
        subjects: the models, by name.
        reporter: shows progress and notes.

    Returns:
        Content of ``weight_fidelity.json``; None if no component can be compared.
    """
    original, quantized = subjects[ORIGINAL].repo, subjects[QUANTIZED].repo
    if not quantized.uses_sdnq:
        reporter.note("the second model is not quantized; weights were not compared")
        return None
    audits: Sequence[Audit] = ()
    added = AddedAdapters()
    with _noting("weights", reporter):
        adapted = subjects[ORIGINAL]
        added = open_adapters(original.folder, adapted.choices, [*adapted.adapters])
        audits = open_audits(quantized.folder)
        # What the manifest does not describe was quantized in the source already.
        audits = [audit for audit in audits if audit.described is not None] or audits
    found: dict[str, Fidelity] = {}
    for audit in audits:
        with _noting(f"weights of {audit.name}" if len(audits) > 1 else "weights", reporter):
            found[audit.name] = _compare(audit, original.folder, added, reporter)
    if not found:
        return None
    checks = check_repo(audits)
    for name, part in found.items():
        checks += about(name if len(audits) > 1 else "", part.checks)
    for check in checks:
        if not check.ok:
            reporter.note(f"weights: the check '{check.title}' failed: {check.detail}")
    # Names of families begin with the component's if there are several, even if only one could be compared.
    nothing = Fidelity((), ())
    joined = join_fidelities({audit.name: found.get(audit.name, nothing) for audit in audits})
    return {
        "schema": "lensconv.weights/1",
        "sources": {name: subject.source() for name, subject in subjects.items()},
        "fidelity": joined.to_dict(),
    }


def _compare(audit: Audit, original: Path, added: AddedAdapters, reporter: Reporter) -> Fidelity:
    """Compare one component with its namesake, to which adapters are added first."""
    require_library_memory(COMPARING_BYTES)
    (source,) = open_sources(original, [audit], None)
    if is_quantized(source):
        raise UnsupportedCheckpoint(f"{source.folder}: is quantized as well")
    # Imported here: it imports torch.
    from converter.verification.fidelity import measure_fidelity

    additions = added.fitted.additions(audit.name) if audit.name in added.checkpoints else None
    return measure_fidelity(audit, source, reporter=reporter, additions=additions)


@contextmanager
def _noting(what: str, reporter: Reporter) -> Iterator[None]:
    """Say why something could not be compared; everything else is measured by now, and stays."""
    try:
        yield
    except (LensconvError, MemoryError) as error:
        reporter.note(f"{what} were not compared: {str(error) or 'there is not enough memory'}")
