"""Compare images and weights of the quantized model with those of the original, after everything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.console import Reporter
from converter.errors import LensconvError
from converter.measurement.benchmark.subjects import Subject
from converter.measurement.comparison.compare import Comparison
from converter.measurement.comparison.pairs import ImagePair
from converter.measurement.evidence.names import ORIGINAL, QUANTIZED
from converter.verification.verify import verify


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
    measured = [row for row in matrix["prompts"] if "time_s" in row[ORIGINAL] and "time_s" in row[QUANTIZED]]
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
    """Compare the transformers' weights, by family.

    Args:
        subjects: the models, by name.
        reporter: shows progress and notes.

    Returns:
        Content of ``weight_fidelity.json``; None if they cannot be compared.
    """
    original, quantized = subjects[ORIGINAL].repo, subjects[QUANTIZED].repo
    if quantized.quantization is None:
        reporter.note("the second model is not quantized; weights were not compared")
        return None
    try:
        report = verify(quantized.folder, components=["transformer"], against=original.folder, reporter=reporter)
    except (LensconvError, MemoryError) as error:
        # Everything else is measured by now, and stays.
        reporter.note(f"weights were not compared: {str(error) or 'there is not enough memory'}")
        return None
    for check in report.checks:
        if not check.ok:
            reporter.note(f"weights: the check '{check.title}' failed: {check.detail}")
    return {
        "schema": "lensconv.weights/1",
        "sources": {name: subject.source() for name, subject in subjects.items()},
        "fidelity": dict(report.fidelity),
    }
