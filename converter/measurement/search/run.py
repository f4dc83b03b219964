"""Everything that a search begins with, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from converter.cluster.cluster import Cluster
from converter.console import Reporter
from converter.conversion.request import Target
from converter.measurement.ablation.subject import Original
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.prompts.suite import PromptSuite
from converter.measurement.search.candidates import SearchSpace
from converter.measurement.search.options import SearchOptions


@dataclass(frozen=True)
class SearchRun:
    """What is searched, and how."""

    original: Path
    """As the user named it; a pipeline repo unless weights alone are measured."""
    described: Original
    """Its denoiser, whose weights are hashed."""
    target: Target
    """The same denoiser, with the recipe of the search and how numbers are treated."""
    space: SearchSpace
    """What can be chosen."""
    suite: PromptSuite
    """The prompts, of which the first ones are used; scores by weights need none."""
    options: SearchOptions
    drawing: GenerateOptions
    """How images are generated; the seed is that of each prompt."""
    folder: Path
    """Of the measurements."""
    reporter: Reporter
    cluster: Cluster | None = None
    """Whose nodes measure; None if this machine does."""
