"""Conversions and reproductions with repos of the local Hub, over LFS and Xet, in processes of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import run_process, snapshot
from tests.faulty_hub import FaultyHub
from tests.hubs import run_client

pytestmark = pytest.mark.long

PUBLISH = """
api.create_repo(sys.argv[2])
found["commit"] = api.upload_folder(repo_id=sys.argv[2], folder_path=sys.argv[1]).oid
"""


@pytest.mark.parametrize("transport", ["lfs", "xet"])
def test_a_release_on_the_hub_of_a_source_on_the_hub(
    transport: str, hub: FaultyHub, tiny_repo: Path, tiny_release: Path, tmp_path: Path
) -> None:
    source, release = (f"alice/{name}-{transport}" for name in ("Lens", "Lens-uint4"))
    xet = transport == "xet"
    commit = run_client(hub, tmp_path / "home", PUBLISH, tiny_repo, source, xet=xet)["commit"]
    environment = hub.environment(os.environ, tmp_path / "home", xet=xet)
    done = run_process("convert", f"hf://{source}@main", tmp_path / "out", "--json", env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    total = sum(file.stat().st_size for file in tiny_repo.rglob("*") if file.is_file())
    assert result["hub"]["place"] == f"hf://{source}@{commit}"
    assert result["hub"]["received_bytes"] <= 1.01 * total + 400_000
    own = {name: content for name, content in snapshot(tmp_path / "out").items() if "manifest" not in name}
    assert own == {name: content for name, content in snapshot(tiny_release).items() if "manifest" not in name}
    run_client(hub, tmp_path / "home", PUBLISH, tmp_path / "out", release, xet=xet)
    # A branch that moves afterwards changes nothing.
    hub.fault("move_head", repo=source)
    done = run_process("reproduce", f"hf://{release}", "--json", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["components"][0]["source"] == f"hf://{source}@{commit}"


def test_repos_that_may_not_be_read(hub: FaultyHub, lens_source: Path, tmp_path: Path) -> None:
    program = """
api.create_repo("alice/private", private=True)
api.upload_folder(repo_id="alice/private", folder_path=sys.argv[1])
"""
    run_client(hub, tmp_path / "home", program, lens_source)
    other = hub.environment(os.environ, tmp_path / "other", xet=False) | {
        "HF_TOKEN": "",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    }
    for repo, reason in (("alice/private", "does not exist, or is private"), ("alice/none", "does not exist")):
        done = run_process("convert", f"hf://{repo}", tmp_path / "out", env=other)
        assert done.returncode == 4
        assert reason in " ".join(done.stderr.split())
    environment = hub.environment(os.environ, tmp_path / "home", xet=False)
    assert run_process("convert", "hf://alice/private@v9", tmp_path / "out", env=environment).returncode == 4
    assert run_process("convert", "hf://alice/private", tmp_path / "out", env=environment).returncode == 0
