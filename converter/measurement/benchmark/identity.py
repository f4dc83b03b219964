"""What makes a benchmark another one: figures of both would not belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from converter.conversion.adapters.described import adapter_identities
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.benchmark.pairing import timing_count
from converter.measurement.benchmark.repos import ImageSettings
from converter.measurement.benchmark.subjects import Subject
from converter.measurement.prompts.suite import PromptSuite


def describe_identity(
    subjects: Sequence[Subject],
    suite: PromptSuite,
    settings: ImageSettings,
    environment: Mapping[str, Any],
    options: BenchOptions,
) -> dict[str, Any]:
    """Everything that figures depend on, as JSON values; a difference makes another benchmark.

    Args:
        subjects: the models, the original first.
        suite: the prompts.
        settings: of an image.
        environment: the machine and the versions.
        options: how to measure.
    """
    shared = asdict(settings)
    del shared["prompt"], shared["seed"]
    adapters = adapter_identities(subjects[0].adapters)
    return {
        "sources": {subject.name: subject.components for subject in subjects},
        "suite": suite.sha256,
        "settings": {
            **shared,
            "timing_prompts": timing_count(suite, options),
            # Journals of earlier versions, which could not add any, have no such key.
            **({"adapters": adapters} if adapters else {}),
        },
        "environment": dict(environment),
    }
