"""Convert the denoising transformer of an image model to SDNQ uint4, and check the result.

    from pathlib import Path
    from converter import convert, plan, verify

    print(plan(Path("Lens/transformer")).output_bytes)
    convert(Path("Lens/transformer"), Path("Lens-uint4"))
    assert verify(Path("Lens-uint4"), against=Path("Lens/transformer")).ok

Importing this package imports nothing heavy: each name is loaded from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from converter._version import __version__ as __version__

if TYPE_CHECKING:
    from converter.checkpoint.header import Header as Header
    from converter.checkpoint.header import TensorEntry as TensorEntry
    from converter.checkpoint.header import read_header as read_header
    from converter.checkpoint.source import Checkpoint as Checkpoint
    from converter.checkpoint.source import open_checkpoint as open_checkpoint
    from converter.conversion.options import ConvertOptions as ConvertOptions
    from converter.conversion.preview import PlanReport as PlanReport
    from converter.conversion.preview import plan as plan
    from converter.conversion.report import ConvertReport as ConvertReport
    from converter.conversion.run import convert as convert
    from converter.errors import LensconvError as LensconvError
    from converter.generation.options import GenerateOptions as GenerateOptions
    from converter.generation.run import GenerateReport as GenerateReport
    from converter.generation.run import generate as generate
    from converter.recipe.recipe import Recipe as Recipe
    from converter.recipe.recipe import Rule as Rule
    from converter.recipe.recipe import find_recipe as find_recipe
    from converter.synth.run import SynthReport as SynthReport
    from converter.synth.run import synthesize as synthesize
    from converter.verification.report import VerifyReport as VerifyReport
    from converter.verification.run import verify as verify

_HOMES = {
    "Checkpoint": "converter.checkpoint.source",
    "ConvertOptions": "converter.conversion.options",
    "ConvertReport": "converter.conversion.report",
    "GenerateOptions": "converter.generation.options",
    "GenerateReport": "converter.generation.run",
    "Header": "converter.checkpoint.header",
    "LensconvError": "converter.errors",
    "PlanReport": "converter.conversion.preview",
    "Recipe": "converter.recipe.recipe",
    "Rule": "converter.recipe.recipe",
    "SynthReport": "converter.synth.run",
    "TensorEntry": "converter.checkpoint.header",
    "VerifyReport": "converter.verification.report",
    "convert": "converter.conversion.run",
    "find_recipe": "converter.recipe.recipe",
    "generate": "converter.generation.run",
    "open_checkpoint": "converter.checkpoint.source",
    "plan": "converter.conversion.preview",
    "read_header": "converter.checkpoint.header",
    "synthesize": "converter.synth.run",
    "verify": "converter.verification.run",
}

__all__ = [
    "Checkpoint",
    "ConvertOptions",
    "ConvertReport",
    "GenerateOptions",
    "GenerateReport",
    "Header",
    "LensconvError",
    "PlanReport",
    "Recipe",
    "Rule",
    "SynthReport",
    "TensorEntry",
    "VerifyReport",
    "__version__",
    "convert",
    "find_recipe",
    "generate",
    "open_checkpoint",
    "plan",
    "read_header",
    "synthesize",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
