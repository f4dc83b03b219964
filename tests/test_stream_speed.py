"""The benchmark of conversions straight from the Hub: its table, the link of its Hub, and how it adds up disk space."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jinja2
import pytest

from converter.rehearsal.settings import HubSettings
from converter.rendering import render
from scripts.benchmark import PAGE
from scripts.slow_hub import slow_hub
from scripts.stream_speed import BEGIN, END, RESULTS, disk_space, summarise
from tests.hubs import commit, get_file, head, lfs_file, make_repo, upload


def test_the_docs_show_figures_that_were_measured() -> None:
    """The table between the marks is what the template makes of the measurements in the repository."""
    result = json.loads(RESULTS.read_text())
    table = render("streaming_table.md.jinja", **result, **summarise(result))
    assert f"{BEGIN}\n{table}{END}" in PAGE.read_text()
    with pytest.raises(jinja2.UndefinedError):
        render("streaming_table.md.jinja", **result)
    for case in result["cases"]:
        assert all(0.98 < run["mbit"] / case["mbit"] < 1.02 for run in case["measured"]["download"])


def test_connections_share_a_link(tmp_path: Path) -> None:
    content, mbit = bytes(range(256)) * 8_000, 48
    with slow_hub(HubSettings(tmp_path / "hub")) as hub:
        repo = make_repo(hub, "slow", hub.account.name)
        upload(hub, repo, content)
        commit(hub, repo, {}, lfs_file("a.bin", content))
        path = f"/{repo}/resolve/{head(hub, repo)}/a.bin"
        hub.restart(mbit)
        started = time.monotonic()
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda _: get_file(hub, path, token=""), range(2)))
        wall, counted = time.monotonic() - started, hub.counted()
    assert [answer.body for answer in answers] == [content] * 2
    assert counted["sent_bytes"] == 2 * len(content)
    # A busy machine makes it slower; nothing makes it faster, but for what the link catches up.
    assert wall > 0.95 * 2 * len(content) * 8 / (mbit * 1e6)
    assert 0 < counted["ended"] - counted["began"] < wall


def test_disk_space_is_what_files_take(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "full").write_bytes(os.urandom(1 << 20))
    os.link(tmp_path / "folder" / "full", tmp_path / "again")
    with (tmp_path / "holes").open("wb") as stream:
        stream.truncate(1 << 30)
    assert 1 << 20 <= disk_space(tmp_path, tmp_path / "missing") < 1 << 21
