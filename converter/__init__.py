"""Convert the denoising transformer of an image model to SDNQ uint4, check the result, and measure it.

    from pathlib import Path
    from converter import bench, convert, plan, read_suite, verify

    print(plan(Path("Lens")).output_bytes)
    convert(Path("Lens"), Path("Lens-uint4"))
    assert verify(Path("Lens-uint4"), against=Path("Lens")).ok
    assert bench(Path("Lens"), Path("Lens-uint4"), Path("evidence"), read_suite("ten-signs")).ok

Importing this package imports nothing heavy: each name is loaded from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from converter._version import __version__ as __version__

if TYPE_CHECKING:
    from converter.benchmark.options import BenchOptions as BenchOptions
    from converter.benchmark.run import BenchReport as BenchReport
    from converter.benchmark.run import bench as bench
    from converter.card.options import CardOptions as CardOptions
    from converter.card.run import CardReport as CardReport
    from converter.card.run import make_card as make_card
    from converter.charts.run import ChartsReport as ChartsReport
    from converter.charts.run import draw_charts as draw_charts
    from converter.checkpoint.header import Header as Header
    from converter.checkpoint.header import TensorEntry as TensorEntry
    from converter.checkpoint.header import read_header as read_header
    from converter.checkpoint.source import Checkpoint as Checkpoint
    from converter.checkpoint.source import open_checkpoint as open_checkpoint
    from converter.comparison.report import FidelityReport as FidelityReport
    from converter.comparison.run import compare as compare
    from converter.conversion.options import ConvertOptions as ConvertOptions
    from converter.conversion.preview import PlanReport as PlanReport
    from converter.conversion.preview import plan as plan
    from converter.conversion.report import ConvertReport as ConvertReport
    from converter.conversion.run import convert as convert
    from converter.errors import LensconvError as LensconvError
    from converter.evidence.files import read_evidence as read_evidence
    from converter.evidence.files import read_evidence_folder as read_evidence_folder
    from converter.generation.options import GenerateOptions as GenerateOptions
    from converter.generation.run import GenerateReport as GenerateReport
    from converter.generation.run import generate as generate
    from converter.grid.report import GridReport as GridReport
    from converter.grid.run import make_grid as make_grid
    from converter.prompts.card import import_card as import_card
    from converter.prompts.suite import PromptSuite as PromptSuite
    from converter.prompts.suite import SuitePrompt as SuitePrompt
    from converter.prompts.suite import read_suite as read_suite
    from converter.publishing.options import PublishOptions as PublishOptions
    from converter.publishing.receipt import Receipt as Receipt
    from converter.publishing.run import publish as publish
    from converter.recipe.recipe import Recipe as Recipe
    from converter.recipe.recipe import Rule as Rule
    from converter.recipe.recipe import find_recipe as find_recipe
    from converter.rehearsal.rehearse import Rehearsal as Rehearsal
    from converter.rehearsal.rehearse import rehearse as rehearse
    from converter.synth.run import SynthReport as SynthReport
    from converter.synth.run import synthesize as synthesize
    from converter.verification.report import VerifyReport as VerifyReport
    from converter.verification.run import verify as verify

_HOMES = {
    "BenchOptions": "converter.benchmark.options",
    "BenchReport": "converter.benchmark.run",
    "CardOptions": "converter.card.options",
    "CardReport": "converter.card.run",
    "ChartsReport": "converter.charts.run",
    "Checkpoint": "converter.checkpoint.source",
    "ConvertOptions": "converter.conversion.options",
    "ConvertReport": "converter.conversion.report",
    "FidelityReport": "converter.comparison.report",
    "GenerateOptions": "converter.generation.options",
    "GenerateReport": "converter.generation.run",
    "GridReport": "converter.grid.report",
    "Header": "converter.checkpoint.header",
    "LensconvError": "converter.errors",
    "PlanReport": "converter.conversion.preview",
    "PromptSuite": "converter.prompts.suite",
    "PublishOptions": "converter.publishing.options",
    "Receipt": "converter.publishing.receipt",
    "Recipe": "converter.recipe.recipe",
    "Rehearsal": "converter.rehearsal.rehearse",
    "Rule": "converter.recipe.recipe",
    "SuitePrompt": "converter.prompts.suite",
    "SynthReport": "converter.synth.run",
    "TensorEntry": "converter.checkpoint.header",
    "VerifyReport": "converter.verification.report",
    "bench": "converter.benchmark.run",
    "compare": "converter.comparison.run",
    "convert": "converter.conversion.run",
    "draw_charts": "converter.charts.run",
    "find_recipe": "converter.recipe.recipe",
    "generate": "converter.generation.run",
    "import_card": "converter.prompts.card",
    "make_card": "converter.card.run",
    "make_grid": "converter.grid.run",
    "open_checkpoint": "converter.checkpoint.source",
    "plan": "converter.conversion.preview",
    "publish": "converter.publishing.run",
    "read_evidence": "converter.evidence.files",
    "read_evidence_folder": "converter.evidence.files",
    "read_header": "converter.checkpoint.header",
    "read_suite": "converter.prompts.suite",
    "rehearse": "converter.rehearsal.rehearse",
    "synthesize": "converter.synth.run",
    "verify": "converter.verification.run",
}

__all__ = [
    "BenchOptions",
    "BenchReport",
    "CardOptions",
    "CardReport",
    "ChartsReport",
    "Checkpoint",
    "ConvertOptions",
    "ConvertReport",
    "FidelityReport",
    "GenerateOptions",
    "GenerateReport",
    "GridReport",
    "Header",
    "LensconvError",
    "PlanReport",
    "PromptSuite",
    "PublishOptions",
    "Receipt",
    "Recipe",
    "Rehearsal",
    "Rule",
    "SuitePrompt",
    "SynthReport",
    "TensorEntry",
    "VerifyReport",
    "__version__",
    "bench",
    "compare",
    "convert",
    "draw_charts",
    "find_recipe",
    "generate",
    "import_card",
    "make_card",
    "make_grid",
    "open_checkpoint",
    "plan",
    "publish",
    "read_evidence",
    "read_evidence_folder",
    "read_header",
    "read_suite",
    "rehearse",
    "synthesize",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
