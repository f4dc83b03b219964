"""Random pipelines are converted, or refused by what is wrong with them; `scripts/sources` tries more of them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings

from tests.random_sources import Blueprint, blueprints, check


@settings(max_examples=25)
@given(blueprints())
def test_a_valid_source_is_converted_and_a_defect_is_named(blueprint: Blueprint) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(blueprint, Path(folder))
