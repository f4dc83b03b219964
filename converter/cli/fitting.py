"""What drawing takes in weights, as ``plan`` shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converter.console import readable_size, table
from converter.models.pipeline_fit import FitReport
from converter.models.pipeline_memory import PLACEMENTS

if TYPE_CHECKING:
    from rich.console import RenderableType


def memory_lines(fit: FitReport) -> list[RenderableType]:
    """A table with a row for each placement, and what it does not contain."""
    rows = []
    for placement, words in PLACEMENTS.items():
        sizes = [memory.placed(placement, on_cpu=False) for memory in (fit.source, fit.result)]
        rows.append([words, *(readable_size(size) for ram, device in sizes for size in (device, ram))])
    columns = ["placement", "source: device", "RAM", "output: device", "RAM"]
    return [table(columns, rows, title="what drawing takes, in weights"), fit.describe()]
