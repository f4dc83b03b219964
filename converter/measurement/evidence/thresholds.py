"""Limits that measured figures must keep, for example in CI: how each figure is found in the evidence and judged."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from converter.errors import UsageError
from converter.measurement.evidence.names import IMAGES_NAME, MATRIX_NAME, METRICS_NAME

#: A decimal number, as it is written in the value of a threshold.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


class NotFound(Exception):
    """The evidence does not have the figure, or does not have all of it; the message is the reason."""


@dataclass(frozen=True)
class Metric:
    """A figure that a threshold can limit."""

    title: str
    unit: str
    least: float
    most: float
    """Range of the value of a threshold."""
    find: Callable[[Mapping[str, Mapping[str, Any]]], tuple[float, str]]
    """Find the figure in the evidence, by file name: the figure, and why it is incomplete, if it is.

    Raises:
        NotFound: it was not measured.
    """
    is_similarity: bool = False
    """Whether lower figures are worse."""


@dataclass(frozen=True)
class Threshold:
    """The worst figure that is allowed."""

    metric: str
    value: float


@dataclass(frozen=True)
class Verdict:
    """What was measured, and whether it keeps the threshold."""

    metric: str
    value: float
    measured: float | None
    """None where it was not measured, and for the infinite PSNR of identical images."""
    ok: bool
    reason: str | None
    """Why the figure is missing or incomplete; None if it is complete."""

    @property
    def is_worse(self) -> bool:
        """Whether the figure was measured and is worse than allowed."""
        return not self.ok and self.measured is not None and _is_worse(self.metric, self.measured, self.value)

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` shows it."""
        return asdict(self)


def parse_threshold(text: str) -> Threshold:
    """Parse ``METRIC=VALUE``.

    Raises:
        UsageError: the metric is unknown, or the value is not a number in its range.
    """
    name, equals, number = text.partition("=")
    if not equals or name not in METRICS:
        raise UsageError(f"{text!r} is not METRIC=VALUE; metrics: {', '.join(METRICS)}")
    metric = METRICS[name]
    value = float(number) if _NUMBER.fullmatch(number) else math.nan
    if not (math.isfinite(value) and metric.least <= value <= metric.most):
        limits = f"at least {metric.least:g}" + (f" and at most {metric.most:g}" if math.isfinite(metric.most) else "")
        raise UsageError(f"{text!r}: the value of {name} is a number, {limits}")
    return Threshold(name, value)


def judge(thresholds: Sequence[Threshold], contents: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    """Compare figures with thresholds.

    A figure that is missing for some images or texts never keeps a threshold, but it can be worse than one.

    Args:
        thresholds: the limits.
        contents: contents of the files of measurements, by file name.
    """
    return [_judge(threshold, contents) for threshold in thresholds]


def exit_code(verdicts: Sequence[Verdict], *, ok: bool = True) -> int:
    """Return 1 if a figure is worse than allowed, or if not all is ``ok``; 3 if one was not measured; else 0."""
    if not ok or any(verdict.is_worse for verdict in verdicts):
        return 1
    return 0 if all(verdict.ok for verdict in verdicts) else 3


def _judge(threshold: Threshold, contents: Mapping[str, Mapping[str, Any]]) -> Verdict:
    try:
        measured, missing = METRICS[threshold.metric].find(contents)
    except NotFound as reason:
        return Verdict(threshold.metric, threshold.value, None, ok=False, reason=str(reason))
    if math.isinf(measured):
        return Verdict(threshold.metric, threshold.value, None, ok=True, reason="all images are identical")
    ok = not missing and not _is_worse(threshold.metric, measured, threshold.value)
    return Verdict(threshold.metric, threshold.value, measured, ok=ok, reason=missing or None)


def _is_worse(metric: str, measured: float, value: float) -> bool:
    return measured < value if METRICS[metric].is_similarity else measured > value


def _images(contents: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Content of ``image_fidelity.json``.

    Raises:
        NotFound: there is none.
    """
    if IMAGES_NAME not in contents:
        raise NotFound("no images were compared")
    return contents[IMAGES_NAME]


def _summary(images: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Summary of a figure of images.

    Raises:
        NotFound: it was measured for none of them.
    """
    found: Mapping[str, Any] | None = images["summary"][name]
    if found is None:
        raise NotFound(images["not_measured"].get(name, "nothing was measured"))
    return found


def _lpips(contents: Mapping[str, Mapping[str, Any]]) -> tuple[float, str]:
    images = _images(contents)
    missing = sum(pair["lpips"] is None for pair in images["pairs"])
    return _summary(images, "lpips")["mean"], _incomplete(missing, len(images["pairs"]), "images", images, "lpips")


def _psnr(contents: Mapping[str, Mapping[str, Any]]) -> tuple[float, str]:
    found = _images(contents)["summary"]["psnr_db"]
    return (math.inf if found is None else found["mean"]), ""


def _cer(contents: Mapping[str, Mapping[str, Any]]) -> tuple[float, str]:
    images = _images(contents)
    texts = [text for pair in images["pairs"] for text in pair["text"]]
    missing = sum(text["original_cer"] is None or text["quantized_cer"] is None for text in texts)
    return _summary(images, "text")["quantized_cer_mean"], _incomplete(missing, len(texts), "texts", images, "text")


def _trajectory(contents: Mapping[str, Mapping[str, Any]]) -> tuple[float, str]:
    images = _images(contents)
    if not images.get("trajectory"):
        raise NotFound(images["not_measured"].get("trajectory", "the trajectory was not measured"))
    return images["trajectory"]["mean_error"], images["not_measured"].get("trajectory", "")


def _slowdown(contents: Mapping[str, Mapping[str, Any]]) -> tuple[float, str]:
    """The lower end of the interval over pairs of processes. An interval over the prompts of one run does not count."""
    summary = contents.get(MATRIX_NAME, {}).get("summary", {})
    found = contents.get(METRICS_NAME, {}).get("slowdown") or summary.get("slowdown")
    if not found or "percent_interval" not in found:
        raise NotFound("times were not compared over at least three pairs of processes")
    return found["percent_interval"][0], ""


def _incomplete(missing: int, count: int, what: str, images: Mapping[str, Any], reason: str) -> str:
    said = images["not_measured"].get(reason, "")
    return f"not measured for {missing} of {count} {what}{said and ': '}{said}" if missing else ""


#: What can be limited, by its name on the command line.
METRICS: dict[str, Metric] = {
    "lpips": Metric("mean LPIPS", "", 0, math.inf, _lpips),
    "psnr": Metric("mean PSNR of images that differ", " dB", 0, math.inf, _psnr, is_similarity=True),
    "cer": Metric("mean character error rate of the quantized model", "", 0, 1, _cer),
    "trajectory": Metric("mean velocity error along the original's trajectory", "", 0, math.inf, _trajectory),
    "slowdown": Metric("lower end of the slowdown's 95% interval", "%", -100, math.inf, _slowdown),
}
