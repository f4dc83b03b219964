"""Publishes under every fault of a Hub, and kills publications at random moments.

Each publication meets one fault on one endpoint of a local Hub, or a SIGKILL, and is followed by the same command
without it where it failed. Then main must hold the release, whole and by exactly one commit, the tag must name that
commit, and the token must be in no output and in no file that was left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.card.options import CardOptions
from converter.card.run import make_card
from converter.conversion.run import convert
from converter.hub.places import HubPlace
from converter.hub.remote import RemoteRepo
from converter.publishing.difference import compare
from converter.publishing.preflight import examine_release
from converter.rehearsal.process import RunningHub, running_hub
from converter.rehearsal.settings import HubSettings
from converter.synth.run import synthesize

ENDPOINTS = {
    "whoami": ("GET", "whoami-v2"),
    "info": ("GET", r"/api/models/[^/]+/[^/?]+$"),
    "create": ("POST", "repos/create"),
    "write access": ("GET", "auth-check"),
    "refs": ("GET", "/refs"),
    "revision": ("GET", "/revision/"),
    "tree": ("GET", "/tree/"),
    "card": ("POST", "validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "commit": ("POST", "/commit/"),
    "read back": ("GET", "/resolve/"),
    "tag": ("POST", "/tag/"),
}
UPLOADS = {
    "xet": {"xet token": ("GET", "xet-write-token")},
    "lfs": {
        "batch": ("POST", "objects/batch"),
        "upload": ("PUT", "/_lfs/"),
        "upload check": ("POST", "lfs/verify"),
        "files": ("GET", "/_files/"),
    },
}
_PAGE = {"Content-Type": "text/html"}
FAULTS: dict[str, dict[str, Any]] = {
    "429": {"action": "status", "status": 429, "headers": {"Retry-After": "1"}},
    "500": {"action": "status", "status": 500},
    "502": {"action": "status", "status": 502, "headers": _PAGE, "body": "<html>bad gateway</html>"},
    "503": {"action": "status", "status": 503},
    "504": {"action": "status", "status": 504, "headers": _PAGE, "body": "<!doctype html><html>gateway</html>"},
    "page": {"action": "status", "status": 200, "headers": _PAGE, "body": "<!doctype html><html>hello</html>"},
    "reset": {"action": "drop_before"},
    "lost answer": {"action": "drop_after"},
}


@dataclass
class Scene:
    """A Hub and a release."""

    hub: RunningHub
    release: Path
    environment: dict[str, str]
    work: Path
    number: int = 0
    failures: int = 0

    def command(self) -> list[str]:
        """Publish to the repo of this number."""
        repository = f"{self.hub.account.name}/tiny-{self.number}"
        options = ["--tag", "v1", "--patience", "30", "--json"]
        return [sys.executable, "-m", "converter", "publish", str(self.release), repository, *options]

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Publish to the end."""
        return subprocess.run(self.command(), env=self.environment, capture_output=True, text=True, check=False)

    def judge(self, what: str, runs: list[subprocess.CompletedProcess[str]], seconds: float) -> None:
        """Print a line about what was seen."""
        faults = list(self._faults(runs))
        self.failures += bool(faults)
        codes = " then ".join(str(done.returncode) for done in runs)
        print(f"{what}: exit {codes}, {seconds:.1f} s{'; WRONG: ' if faults else ''}{'; '.join(faults)}", flush=True)

    def _faults(self, runs: list[subprocess.CompletedProcess[str]]) -> Iterator[str]:
        from huggingface_hub import HfApi

        token = self.hub.account.token
        if runs[-1].returncode:
            yield f"the last run failed: {runs[-1].stdout[-300:]}"
            return
        repository = f"{self.hub.account.name}/tiny-{self.number}"
        api = HfApi(endpoint=self.hub.endpoint, token=token)
        commits = [commit.commit_id for commit in api.list_repo_commits(repository)]
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repository).tags}
        if len(commits) != 2:
            yield f"main has {len(commits)} commits"
        if tags != {"v1": commits[0]}:
            yield f"tags are {tags}"
        remote = RemoteRepo.open(HubPlace(repository), endpoint=self.hub.endpoint, token=token)
        if compare(examine_release(self.release, repository).files, remote.files):
            yield "main is not the release"
        said = "".join(done.stdout + done.stderr for done in runs)
        if token in said or "Traceback" in said:
            yield "the output holds the token, or a traceback"
        for folder in (self.release, Path(self.environment["HF_HOME"])):
            for file in folder.rglob("*"):
                if file.is_file() and token.encode() in file.read_bytes():
                    yield f"{file} holds the token"


def main() -> None:
    """Go through all faults, then kill as often as asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transport", choices=sorted(UPLOADS), default="lfs")
    parser.add_argument("--client", type=Path, help="folder with another huggingface_hub, put first in PYTHONPATH")
    parser.add_argument("--kills", type=int, default=20, help="how many publications to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--only", default="", help="endpoint to go through alone")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    try:
        synthesize(work / "source", preset="tiny")
        convert(work / "source", work / "release")
        make_card(work / "release", options=CardOptions(license="mit"))
        with running_hub(HubSettings(work / "hub")) as hub:
            environment = hub.environment(os.environ, work / "home", xet=arguments.transport == "xet")
            environment |= {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms"}
            if arguments.client:
                environment["PYTHONPATH"] = str(arguments.client.resolve())
            scene = Scene(hub, work / "release", environment, work)
            go_through_faults(scene, {**ENDPOINTS, **UPLOADS[arguments.transport]}, arguments.only)
            kill(scene, arguments.kills, random.Random(arguments.seed))  # noqa: S311 - moments, not secrets
    finally:
        shutil.rmtree(work)
    print(json.dumps({"transport": arguments.transport, "publications": scene.number, "wrong": scene.failures}))
    sys.exit(scene.failures > 0)


def go_through_faults(scene: Scene, endpoints: dict[str, tuple[str, str]], only: str) -> None:
    """One publication for each fault on each endpoint."""
    for endpoint, (method, path) in endpoints.items():
        for name, fault in FAULTS.items() if only in ("", endpoint) else ():
            scene.number += 1
            scene.hub.fault(**fault, method=method, path=path)
            started = time.monotonic()
            runs = [scene.finish()]
            seconds = time.monotonic() - started
            met = not scene.hub.faults()
            scene.hub.clear_faults()
            if runs[0].returncode:
                runs.append(scene.finish())
            scene.judge(f"{endpoint}, {name}{'' if met else ' (not met)'}", runs, seconds)


def kill(scene: Scene, count: int, generator: random.Random) -> None:
    """Kill publications at random moments of their course."""
    scene.number += 1
    started = time.monotonic()
    scene.judge("nothing", [scene.finish()], 0.0)
    length = time.monotonic() - started
    for _ in range(count):
        scene.number += 1
        moment = generator.uniform(0.2, 1.0) * length
        with subprocess.Popen(
            scene.command(), env=scene.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(moment)
            process.kill()
        scene.judge(f"killed after {moment:.2f} s", [scene.finish()], moment)


if __name__ == "__main__":
    main()
