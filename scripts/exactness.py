"""Compares lensconv with SDNQ byte for byte, over many classes, recipes and shard sizes.

For tiny random-weight models of each class, SDNQ's own path writes one folder and lensconv another. Weight files and
index must be the same bytes, the configs the same values once what SDNQ leaves in random order is sorted. With a
full-size source, ``--source`` compares one checkpoint with the recipe lens-uint4-static.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converter import ConvertOptions, Recipe, convert
from tests.reference import (
    FURTHER_RECIPES,
    LENS_OPTIONS,
    RECIPES,
    SHARDS,
    convert_with_sdnq,
    read_configs,
    weight_files,
)
from tests.tiny_models import ALL_CLASSES, save_model

ALL_RECIPES = RECIPES | FURTHER_RECIPES


def main() -> None:
    """Compare what was asked for; exits with 1 when anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", default=",".join(ALL_CLASSES))
    parser.add_argument("--recipes", default=",".join(ALL_RECIPES))
    parser.add_argument("--shards", default=",".join(SHARDS))
    parser.add_argument("--source", type=Path, help="an F32 Lens transformer to compare instead")
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one by default")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=arguments.work))
    try:
        if arguments.source is not None:
            pairs = [("LensTransformer2DModel", arguments.source, "lens", LENS_OPTIONS, "5GB")]
            same, different = compare_all(work, iter(pairs))
        else:
            same, different = compare_all(work, tiny_pairs(work, arguments))
    finally:
        shutil.rmtree(work)
    print(f"{same} the same, {different} different")
    sys.exit(1 if different else 0)


def tiny_pairs(work: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Path, str, dict[str, Any], str]]:
    """Class, source, recipe and shard size of every comparison; sources are made as they are needed."""
    for name in arguments.classes.split(","):
        source = save_model(work / name, name)
        for recipe in arguments.recipes.split(","):
            for shard in arguments.shards.split(","):
                yield name, source, recipe, ALL_RECIPES[recipe], shard


def compare_all(work: Path, pairs: Iterator[tuple[str, Path, str, dict[str, Any], str]]) -> tuple[int, int]:
    """Compare one after the other; returns how many were the same and how many were not."""
    same = different = 0
    for name, source, recipe, options, shard in pairs:
        problem = compare(work, name, source, options, shard)
        if problem:
            different += 1
            print(f"{name} {recipe} {shard}: {problem}")
        else:
            same += 1
    return same, different


def compare(work: Path, name: str, source: Path, options: dict[str, Any], shard: str) -> str:
    """Compare the two paths on one source; returns what differs."""
    expected, output = work / "expected", work / "output"
    for folder in (expected, output):
        shutil.rmtree(folder, ignore_errors=True)
    convert_with_sdnq(source, expected, name, options, shard=shard)
    recipe = None if options is LENS_OPTIONS else Recipe("compared", options)
    convert(source, output, recipe, ConvertOptions(shard_bytes=SHARDS[shard], force=True))
    wanted, found = weight_files(expected), weight_files(output)
    differing = sorted(file for file in {*wanted, *found} if wanted.get(file) != found.get(file))
    if differing:
        return f"files differ: {', '.join(differing)}"
    if read_configs(expected) != read_configs(output):
        return "configs differ"
    return "" if json.loads((output / "config.json").read_text()) else "config.json is empty"


if __name__ == "__main__":
    main()
