"""Publishes under every fault of a Hub, and kills publications at random moments.

Each publication meets a repo whose main has an older release. It also meets a fault on one endpoint of a local Hub, a
SIGKILL, or a scene of its own. Afterwards main must have the older release or the newer one, complete, with at most one
new commit. A failure must have the expected exit code and one line that says why. The token must not be in any output
or in any file that is left. If nothing prevents it, the same command then publishes, and the tag must name that one
commit. The last line counts the publications and those that went wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from converter.conversion.convert import convert
from converter.presentation.card.make_card import make_card
from converter.presentation.card.options import CardOptions
from converter.rehearsal.settings import Account, HubSettings
from converter.synthesis.synthesize import synthesize
from scripts.publish_scenes import SCENES, Scene
from scripts.publish_stage import Done, Stage
from tests.faulty_hub import faulty_hub

ENDPOINTS = {
    "whoami": ("GET", "whoami-v2"),
    "info": ("GET", r"/api/models/[^/]+/[^/?]+$"),
    "write access": ("GET", "auth-check"),
    "refs": ("GET", "/refs"),
    "revision": ("GET", "/revision/"),
    "tree": ("GET", "/tree/"),
    "card": ("POST", "validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "commit": ("POST", "/commit/"),
    "manifest": ("GET", "/resolve/[^/]+/lensconv_manifest"),
    "read back": ("GET", "/resolve/[^/]+/(?!lensconv_manifest)"),
    "tag": ("POST", "/tag/"),
}
UPLOADS = {
    "xet": {"xet token": ("GET", "xet-write-token")},
    "lfs": {
        "batch": ("POST", "objects/batch"),
        "upload": ("PUT", r"/_lfs/[^/]+\?"),
        "upload of a part": ("PUT", "/part/"),
        "joining the parts": ("POST", "/complete"),
        "upload check": ("POST", "lfs/verify"),
        "files": ("GET", "/_files/"),
    },
}
#: It has a run of its own, because in the others the repo exists already.
CREATE = ("POST", "repos/create")
_PAGE = {"Content-Type": "text/html"}
#: Faults that happen once.
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
#: Faults that last until the publication gives up.
LASTING: dict[str, dict[str, Any]] = {
    "revoked token": {
        "action": "status",
        "status": 401,
        "headers": {"X-Error-Message": "Invalid credentials in Authorization header"},
    },
    "forbidden": {"action": "status", "status": 403, "headers": {"X-Error-Message": "Forbidden"}},
    "429 for an hour": {"action": "status", "status": 429, "headers": {"Retry-After": "3600"}},
}


def main() -> None:
    """Go through all faults and scenes, then kill as often as asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transport", choices=sorted(UPLOADS), default="lfs")
    parser.add_argument("--client", type=Path, help="folder with another huggingface_hub, put first in PYTHONPATH")
    parser.add_argument("--kills", type=int, default=20, help="how many publications to kill")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--only", default="", help="regular expression of the endpoints and scenes to go through")
    arguments = parser.parse_args()
    if arguments.transport == "lfs":
        # For the client in this process, which prepares the repos.
        os.environ["HF_HUB_DISABLE_XET"] = "1"
    wanted = re.compile(arguments.only).search
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["HF_HOME"] = str(work / "own-home")
        synthesize(work / "source", preset="tiny")
        convert(work / "source", work / "base")
        make_card(work / "base", options=CardOptions(license="mit"))
        accounts = (Account.new("owner", "write", "lab"), Account.new("reader", "read", "lab"), Account.new("stranger"))
        settings = HubSettings(work / "hub", accounts, multipart_bytes=60_000, part_bytes=40_000)
        hub = stack.enter_context(faulty_hub(settings))
        environment = hub.environment(os.environ, work / "home", xet=arguments.transport == "xet")
        environment |= {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms"}
        if arguments.client:
            environment["PYTHONPATH"] = str(arguments.client.resolve())
        stage = Stage(hub, work / "base", work / "release", environment)
        stage.api.create_repo("lab/another")
        for endpoint, (method, path) in {**ENDPOINTS, **UPLOADS[arguments.transport]}.items():
            for name, fault in FAULTS.items() if wanted(endpoint) else ():
                meet(stage, f"{endpoint}, {name}", {**fault, "method": method, "path": path})
            for name, fault in LASTING.items() if wanted(endpoint) else ():
                lasting = {**fault, "method": method, "path": path, "times": 0}
                meet(stage, f"{endpoint}, {name}", lasting, patience=2, again=False)
        if wanted("create"):
            create(stage)
        for name, scene in SCENES.items():
            if wanted(name):
                play(stage, name, scene)
        if wanted("disk"):
            fill_disks(stage, work / "small")
        if wanted("two at once"):
            publish_twice_at_once(stage)
        generator = random.Random(arguments.seed)  # noqa: S311 - moments, not secrets
        kill(stage, arguments.kills, generator)
        kill_pull_requests(stage, arguments.kills // 2, generator)
    print(json.dumps({"transport": arguments.transport, "publications": stage.number, "wrong": stage.failures}))
    sys.exit(stage.failures > 0)


def meet(stage: Stage, what: str, fault: Mapping[str, Any], patience: int = 30, *, again: bool = True) -> None:
    """Publish with a fault; if that fails, and again is set, publish without it."""
    stage.begin()
    stage.hub.forget_requests()
    stage.hub.fault(**fault)
    started = time.monotonic()
    runs = [stage.finish("--patience", str(patience))]
    seconds = time.monotonic() - started
    requests = [(entry["method"], f"{entry['path']}?{entry['query']}") for entry in stage.hub.requests()]
    is_met = any(method == fault["method"] and re.search(fault["path"], path.rstrip("?")) for method, path in requests)
    stage.hub.clear_faults()
    faults = list(stage.state_faults())
    if not is_met:
        faults.append("the fault was not met")
    if runs[0].returncode not in (0, 4):
        faults.append("exit 4 was expected")
    if runs[0].returncode and again:
        runs.append(stage.finish())
    if runs[-1].returncode:
        faults += ["the last run failed"] if again else []
    else:
        faults += stage.end_faults()
    stage.judge(what, runs, seconds, faults)


def create(stage: Stage) -> None:
    """Meet faults when a repo is made."""
    for name, fault in {**FAULTS, **LASTING}.items():
        stage.begin()
        repository = stage.repository
        stage.api.delete_repo(repository)
        stage.kept = ()
        stage.hub.fault(**fault, method=CREATE[0], path=CREATE[1], times=0 if name in LASTING else 1)
        started = time.monotonic()
        runs = [stage.finish("--patience", "5")]
        seconds = time.monotonic() - started
        stage.hub.clear_faults()
        if runs[0].returncode:
            runs.append(stage.finish())
        faults = [] if len(stage.api.list_repo_commits(repository)) == 2 else ["the release is not one commit"]
        if runs[-1].returncode or not stage.is_whole("v1"):
            faults.append("the release is not there")
        stage.judge(f"create, {name}", runs, seconds, faults)


def play(stage: Stage, name: str, scene: Scene) -> None:
    """Publish in a scene, then do what its end says."""
    stage.begin(private=scene.private, long=scene.long)
    if scene.before is not None:
        scene.before(stage)
    fault = scene.fault(stage) if callable(scene.fault) else scene.fault
    if fault is not None:
        stage.hub.fault(**fault)
    thread = threading.Thread(target=_when_used_up, args=(stage, scene.meanwhile))
    if scene.meanwhile is not None:
        thread.start()
    started = time.monotonic()
    known = {"endpoint": stage.hub.endpoint, **{name: stage.hub.token(name) for name in ("reader", "stranger")}}
    variables = {name: value.format(**known) for name, value in scene.variables.items()}
    runs = [stage.finish(*scene.options, **variables)]
    seconds = time.monotonic() - started
    stage.hub.clear_faults()
    if scene.meanwhile is not None:
        thread.join()
    faults = list(stage.state_faults())
    if runs[0].returncode not in scene.codes:
        faults.append(f"exit {' or '.join(map(str, scene.codes))} was expected")
    if not re.search(scene.reason, runs[0].stderr):
        faults.append(f"{scene.reason!r} was expected")
    if scene.end is not None:
        if runs[0].returncode and scene.end is Stage.end_faults:
            runs.append(stage.finish())
        faults += scene.end(stage)
    stage.judge(name, runs, seconds, faults)


def _when_used_up(stage: Stage, action: Callable[[Stage], object]) -> None:
    while stage.hub.faults():
        time.sleep(0.05)
    action(stage)


def fill_disks(stage: Stage, folder: Path) -> None:
    """The client's cache, and then the release, on a disk that is full; the release on one that is read-only."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=False).returncode:
        print("disks that are full: not run, as this needs the right to mount")
        return
    release = stage.release
    try:
        for name in ("the cache", "the release", "a read-only release"):
            stage.begin()
            variables = {}
            if name == "the cache":
                variables["HF_HOME"] = str(folder / "home")
            else:
                stage.release = folder / "release"
                shutil.copytree(release, stage.release, dirs_exist_ok=True)
            if name == "a read-only release":
                subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            else:
                _fill(folder / "filling")
            started = time.monotonic()
            done = stage.finish(**variables)
            faults = [*stage.state_faults(), *stage.end_faults()]
            stage.judge(f"disk full or not to be written to: {name}", [done], time.monotonic() - started, faults)
            stage.release = release
            if name != "a read-only release":
                (folder / "filling").unlink()
    finally:
        stage.release = release
        subprocess.run(["umount", folder], check=True)


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as stream:
        try:
            while stream.write(bytes(4096)):
                pass
        except OSError:
            return


def publish_twice_at_once(stage: Stage) -> None:
    """Publish one release twice at once: there is one commit, and the second run reports that or finds it done."""
    for _ in range(3):
        stage.begin()
        started = time.monotonic()
        pipe = subprocess.PIPE
        processes = [
            subprocess.Popen(stage.command(), env=stage.environment, stdout=pipe, stderr=pipe, text=True)
            for _ in range(2)
        ]
        runs = []
        for process in processes:
            stdout, stderr = process.communicate()
            runs.append(Done(process.args, process.returncode, stdout, stderr))
        seconds = time.monotonic() - started
        faults = list(stage.end_faults())
        if sorted(done.returncode for done in runs) not in ([0, 0], [0, 4]):
            faults.append("neither has published, or the other fails for no reason")
        stage.judge("two at once", runs, seconds, faults)


def _kill_after(stage: Stage, moment: float) -> None:
    quiet = subprocess.DEVNULL
    with subprocess.Popen(stage.command(), env=stage.environment, stdout=quiet, stderr=quiet) as process:
        time.sleep(moment)
        process.kill()


def kill(stage: Stage, count: int, generator: random.Random) -> None:
    """Kill publications at random moments."""
    stage.begin(long=True)
    started = time.monotonic()
    done = stage.finish()
    length = time.monotonic() - started
    stage.judge("nothing", [done], length, list(stage.end_faults()))
    for _ in range(count):
        stage.begin(long=True)
        moment = generator.uniform(0.2, 1.0) * length
        _kill_after(stage, moment)
        faults = list(stage.state_faults())
        left = "older" if stage.remote().address.revision == stage.old else "newer"
        done = stage.finish()
        stage.judge(f"killed after {moment:.2f} s, main was the {left}", [done], moment, [*faults, *stage.end_faults()])


def kill_pull_requests(stage: Stage, count: int, generator: random.Random) -> None:
    """Do the same with pull requests: main stays, and exactly one pull request exists, with the release in it."""
    options = ["--create-pr", "--patience", "30"]
    stage.begin(options=options)
    started = time.monotonic()
    stage.judge("nothing, as a pull request", [stage.finish()], 0.0, list(_pull_request_faults(stage)))
    length = time.monotonic() - started
    for _ in range(count):
        stage.begin(options=options)
        moment = generator.uniform(0.3, 1.0) * length
        _kill_after(stage, moment)
        done = stage.finish()
        stage.judge(f"pull request killed after {moment:.2f} s", [done], moment, list(_pull_request_faults(stage)))


def _pull_request_faults(stage: Stage) -> Iterator[str]:
    if stage.remote().address.revision != stage.old:
        yield "main has changed"
    found = list(stage.api.get_repo_discussions(stage.repository))
    if [(discussion.num, discussion.status) for discussion in found] != [(1, "open")]:
        yield f"there are the pull requests {[(discussion.num, discussion.status) for discussion in found]}"
        return
    commits = stage.api.list_repo_commits(stage.repository, revision="refs/pr/1")
    if len(commits) != 3 or not stage.is_whole("refs/pr/1"):
        yield "the pull request does not have the release in one commit"


if __name__ == "__main__":
    main()
