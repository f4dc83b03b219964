"""Searches on the nodes of a cluster: the scores and recipes of one machine, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from converter import SearchOptions, search
from converter.measurement.search.journal import JOURNAL_NAME
from converter.measurement.search.scores import SCORES_NAME
from converter.measurement.search.search import SearchReport
from converter.synthesis.synthesize import synthesize
from scripts import ray_nodes
from tests.test_search import BUDGET, FAST, SMALL, SUITE

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "Lens"
    synthesize(folder, preset="signs")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_nodes.nodes(2) as found:
        yield found


def in_both_places(signs: Path, folder: Path, options: SearchOptions, cluster: Any) -> list[SearchReport]:
    """The same search on this machine and on the nodes."""
    for place in ("here", "nodes"):
        (folder / place).mkdir()
    return [
        search(signs, folder / place / "mine.toml", options, None, SUITE, SMALL, ray=address)
        for place, address in (("here", None), ("nodes", cluster.address))
    ]


def assert_same(here: SearchReport, nodes: SearchReport) -> None:
    assert nodes.found[0].file.read_bytes() == here.found[0].file.read_bytes()
    assert (nodes.evidence / SCORES_NAME).read_bytes() == (here.evidence / SCORES_NAME).read_bytes()
    assert noted(nodes) == noted(here)


def noted(report: SearchReport) -> list[str]:
    """The lines of a journal, whatever the order in which they were written, and that of their keys."""
    lines = (report.evidence / JOURNAL_NAME).read_bytes().splitlines()
    return sorted(json.dumps(json.loads(line), sort_keys=True) for line in lines)


def test_a_search_by_gradients_and_its_check(signs: Path, cluster: Any, tmp_path: Path) -> None:
    options = SearchOptions(budget=BUDGET, check=True, candidates="uint4,int8", **FAST)
    here, nodes = in_both_places(signs, tmp_path, options, cluster)
    assert_same(here, nodes)
    assert nodes.check == here.check
    measured = [json.loads((report.evidence / "ablation.json").read_bytes()) for report in (here, nodes)]
    for content in measured:
        del content["environment"]["date"]
    assert measured[0] == measured[1]


@pytest.mark.parametrize("score", ["weights", "inputs", "measured"])
def test_other_scores(signs: Path, cluster: Any, tmp_path: Path, score: str) -> None:
    options = SearchOptions(budget=BUDGET, score=score, candidates="uint4,int8", **FAST)
    assert_same(*in_both_places(signs, tmp_path, options, cluster))
