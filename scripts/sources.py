"""Converts random pipelines: valid ones must load in stock diffusers afterwards, defects must be named.

Each pipeline is drawn by hypothesis: components, shards, variants, names, stray files, and in about half of them one
defect. A failure is shrunk to the smallest pipeline that fails, and printed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

from tests.random_sources import Blueprint, blueprints, check


def main() -> None:
    """Try as many pipelines as were asked for; a failure ends it with hypothesis's report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="pipelines to try")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pipelines")
    arguments = parser.parse_args()
    outcomes: Counter[str] = Counter()

    @seed(arguments.seed)
    @settings(
        max_examples=arguments.count,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(blueprints())
    def try_one(blueprint: Blueprint) -> None:
        with tempfile.TemporaryDirectory() as folder:
            check(blueprint, Path(folder))
        outcomes[blueprint.defect.kind if blueprint.defect else "valid"] += 1

    try_one()
    print(f"{outcomes.pop('valid', 0)} valid pipelines were converted and loaded in stock diffusers")
    print(f"{outcomes.total()} with a defect were refused: {dict(sorted(outcomes.items()))}")


if __name__ == "__main__":
    main()
