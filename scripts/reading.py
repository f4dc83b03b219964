"""Measure how well required texts are read: by RapidOCR with tesseract, and by tesseract alone.

The signs are drawn from a seed, and their damage is known: a letter is replaced or missing, or the picture is blurred
or noisy. A good reader reports the error that a sign really has: that of its own text against the required one. Prints
a table of the mean error rates, and of how far they are from the true ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from converter.measurement.comparison.perceptual import NotMeasured
from converter.measurement.comparison.substring import character_error_rate
from converter.measurement.comparison.text_accuracy import Readers, find_readers
from scripts.reading_signs import DAMAGES, TEXTS, Sign, signs


@dataclass(frozen=True)
class Outcome:
    """A sign, and the error rates that were measured by tesseract alone and with RapidOCR."""

    sign: Sign
    old: float
    new: float

    @property
    def true(self) -> float:
        """Error rate of the text that the sign really shows."""
        return character_error_rate(self.sign.required, self.sign.shown)


def main() -> None:
    """Read all signs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the signs (default 0)")
    seed = parser.parse_args().seed
    new = find_readers()
    if new.rapidocr is None or new.tesseract is None:
        raise SystemExit("; ".join(new.reasons.values()))
    old = Readers(None, new.tesseract, {})
    seconds = [0.0, 0.0]
    outcomes = []
    for sign in signs(seed):
        rates = []
        for place, readers in enumerate((old, new)):
            begin = time.monotonic()
            try:
                rates.append(_rate(readers, sign))
            except NotMeasured as reason:
                raise SystemExit(str(reason)) from reason
            seconds[place] += time.monotonic() - begin
        outcomes.append(Outcome(sign, *rates))
    print("\n".join(table(outcomes)))
    print(
        f"\n{len(outcomes)} signs; seconds for one: {seconds[0] / len(outcomes):.2f}, {seconds[1] / len(outcomes):.2f}"
    )
    for found in outcomes:
        if abs(found.new - found.true) > 0.01:
            shown = f"{found.sign.kind}, {found.sign.damage}: {found.sign.required!r} as {found.sign.shown!r}"
            print(f"{shown}: true {found.true:.2f}, measured {found.new:.2f}, by tesseract {found.old:.2f}")


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Lines of a Markdown table: by kind of sign, by damage, and in all."""
    lines = [
        "| signs | true error | tesseract alone | RapidOCR and tesseract | off by, tesseract alone | off by, both |"
    ]
    lines.append("| --- |" + " ---: |" * 5)
    for kind in TEXTS:
        lines.append(_row(kind, [found for found in outcomes if found.sign.kind == kind]))
    for damage in DAMAGES:
        lines.append(_row(f"damage: {damage}", [found for found in outcomes if found.sign.damage == damage]))
    return [*lines, _row("all", outcomes)]


def _row(name: str, outcomes: Sequence[Outcome]) -> str:
    figures = [
        fmean(found.true for found in outcomes),
        fmean(found.old for found in outcomes),
        fmean(found.new for found in outcomes),
        fmean(abs(found.old - found.true) for found in outcomes),
        fmean(abs(found.new - found.true) for found in outcomes),
    ]
    return f"| {name} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |"


def _rate(readers: Readers, sign: Sign) -> float:
    ((name, strings),) = readers.assign([sign.required])
    (reading,) = readers.read(name, sign.image, strings)
    return reading.error_rate or 0.0


if __name__ == "__main__":
    main()
