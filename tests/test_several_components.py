"""Conversions and verifications of several components of one pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter import ConvertOptions, Recipe, convert
from tests import reference
from tests.conftest import snapshot
from tests.pipelines import CONVERTED, NAMES, make_several


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline of ``make_several``; nobody changes it."""
    return make_several(tmp_path_factory.mktemp("several") / "source")


@pytest.fixture(scope="module")
def release(source: Path) -> Path:
    """What the default recipe makes of all that can be converted; nobody changes it."""
    output = source.with_name("release")
    convert(source, output, options=ConvertOptions(components=NAMES))
    return output


@pytest.mark.parametrize("name", ["uint4", "svd", "stochastic", "dynamic", "dynamic-svd"])
def test_each_component_is_what_sdnq_writes_and_what_it_is_alone(name: str, source: Path, tmp_path: Path) -> None:
    """In whatever order they are named, and although each uses random numbers or decides by its weights."""
    options = (reference.RECIPES | reference.FURTHER_RECIPES)[name]
    recipe = Recipe("mine", options, seed=3)
    shard = "200KB" if name == "uint4" else "5GB"
    for place, names in (("out", NAMES), ("other order", NAMES[::-1])):
        shard_bytes = reference.SHARDS[shard]
        convert(source, tmp_path / place, recipe, ConvertOptions(components=names, shard_bytes=shard_bytes, jobs=2))
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "other order")
    for component, class_name in CONVERTED.items():
        expected = reference.convert_with_sdnq(
            source / component, tmp_path / "sdnq" / component, class_name, options, shard=shard, seed=3
        )
        assert reference.weight_files(tmp_path / "out" / component) == reference.weight_files(expected)
        assert reference.read_configs(tmp_path / "out" / component) == reference.read_configs(expected)
        alone = ConvertOptions(components=(component,), shard_bytes=reference.SHARDS[shard], jobs=1)
        convert(source, tmp_path / component, recipe, alone)
        assert snapshot(tmp_path / component / component) == snapshot(tmp_path / "out" / component)
