"""Publishes under every fault of a Hub, and kills publications at random moments.

Each publication meets a repo whose main has an older release. It also meets a fault on one endpoint of a local Hub, a
SIGKILL, or a scene of its own. Afterwards main must have the older release or the newer one, complete, with at most one
new commit. A failure must have the expected exit code and one line that says why. The token must not be in any output
or in any file that is left. If nothing prevents it, the same command then publishes, and the tag must name that one
commit. The last line counts the publications and those that went wrong.
"""

from __future__ import annotations

import argparse
import hashlib
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.conversion.convert import convert
from converter.conversion.release.manifest import MANIFEST_NAME, STATE_FOLDER
from converter.hub.addresses import HubAddress
from converter.hub.remote import RemoteRepo
from converter.presentation.card.make_card import make_card
from converter.presentation.card.options import CardOptions
from converter.publication.files import PublishedFile, compare
from converter.publication.preflight import examine_release
from converter.rehearsal.settings import Account, HubSettings
from converter.synthesis.synthesize import synthesize
from tests.faulty_hub import FaultyHub, faulty_hub

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
    "read back": ("GET", "/resolve/"),
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
#: Bytes of a file that is sent from the disk and not from memory.
_LONG_BYTES = 11 << 20

Done = subprocess.CompletedProcess[str]


@dataclass
class Stage:
    """A Hub, a release, and the repo that it is published to."""

    hub: FaultyHub
    base: Path
    """The release that each publication starts from."""
    release: Path
    environment: dict[str, str]
    number: int = 0
    failures: int = 0
    old: str = ""
    """The commit of the older release."""
    foreign: int = 0
    """Commits by others."""
    options: list[str] = field(default_factory=list)
    expected: tuple[PublishedFile, ...] = ()
    """The files that must be published."""

    def __post_init__(self) -> None:
        from huggingface_hub import HfApi

        self.api = HfApi(endpoint=self.hub.endpoint, token=self.hub.account.token)

    @property
    def repository(self) -> str:
        """The repo of this publication."""
        return f"lab/tiny-{self.number}"

    def begin(self, *, private: bool = False, long: bool = False, options: list[str] | None = None) -> None:
        """Make a repo whose main has an older release, and a newer release on the disk with contents that are new."""
        from huggingface_hub import CommitOperationAdd

        self.number += 1
        self.foreign = 0
        self.options = ["--tag", "v1", "--patience", "30"] if options is None else options
        self.api.create_repo(self.repository, private=private)
        shutil.rmtree(self.release, ignore_errors=True)
        shutil.copytree(self.base, self.release)
        contents = {file.name: file.file.read_bytes() for file in examine_release(self.release, self.repository).files}
        contents |= {"README.md": b"---\nlicense: mit\n---\n", "extra.bin": b"\0older", "gone.json": b"{}"}
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        self.old = self.api.create_commit(self.repository, operations, commit_message="Older").oid
        for name, size in (("extra.bin", 20_000), ("more.bin", 90_000), ("long.bin", _LONG_BYTES if long else 1000)):
            self.list_file(name, os.urandom(size))
        self.expect()

    def expect(self) -> None:
        """Expect the release as it is now."""
        self.expected = examine_release(self.release, self.repository).files
        # The command examines it once more, as if it had just been made.
        shutil.rmtree(self.release / STATE_FOLDER)

    def list_file(self, name: str, content: bytes) -> None:
        """Write a file of the release, and list it in the manifest."""
        (self.release / name).write_bytes(content)
        manifest = json.loads((self.release / MANIFEST_NAME).read_text())
        entry = {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["files"] = [file for file in manifest["files"] if file["name"] != name] + [entry]
        (self.release / MANIFEST_NAME).write_text(json.dumps(manifest))

    def sha256(self, name: str) -> str:
        """Return the sha256 of a file of the release."""
        return hashlib.sha256((self.release / name).read_bytes()).hexdigest()

    def command(self) -> list[str]:
        """Return the command that publishes to the repo of this number."""
        program = [sys.executable, "-m", "converter", "publish"]
        return [*program, str(self.release), self.repository, *self.options]

    def finish(self, *options: str, **variables: str) -> Done:
        """Publish to the end."""
        environment = self.environment | variables
        return subprocess.run([*self.command(), *options], env=environment, capture_output=True, text=True, check=False)

    def remote(self, revision: str | None = None) -> RemoteRepo:
        """Return the files of a revision."""
        address = HubAddress(self.repository, revision)
        return RemoteRepo.open(address, endpoint=self.hub.endpoint, token=self.hub.account.token)

    def is_whole(self, revision: str | None = None) -> bool:
        """Whether a revision is the release."""
        return not compare(self.expected, self.remote(revision).files)

    def judge(self, what: str, runs: list[Done], seconds: float, faults: list[str]) -> None:
        """Print a line about what was found, and what the command said."""
        token = self.hub.account.token
        for done in runs:
            said = done.stderr.strip().splitlines()
            errors = [line for line in said if line.startswith("error: ")]
            if len(errors) != bool(done.returncode) or (errors and said[-1] != errors[0]) or "Traceback" in done.stderr:
                faults.append(f"the command said: {done.stderr[-500:]!r}")
            if done.stdout:
                faults.append(f"stdout must be empty without --json: {done.stdout[:300]!r}")
            if token in done.stdout + done.stderr:
                faults.append("the output contains the token")
        for folder in (self.release, Path(self.environment["HF_HOME"])):
            for file in folder.rglob("*"):
                if file.is_file() and token.encode() in file.read_bytes():
                    faults.append(f"{file} contains the token")
        self.failures += bool(faults)
        codes = " then ".join(str(done.returncode) for done in runs)
        print(f"{what}: exit {codes}, {seconds:.1f} s{'; WRONG: ' if faults else ''}{'; '.join(faults)}")
        for done in runs:
            if done.returncode:
                print(f"    {done.stderr.strip().splitlines()[-1]}")
        sys.stdout.flush()

    def state_faults(self) -> Iterator[str]:
        """Say what is wrong with main: it must have the older release or the newer one, with at most one new commit."""
        commits = [commit.commit_id for commit in self.api.list_repo_commits(self.repository)]
        if len(commits) - self.foreign not in (2, 3):
            yield f"main has {len(commits)} commits"
        if commits[0] != self.old and not self.foreign and not self.is_whole():
            yield "main is neither the older release nor the newer one"

    def end_faults(self) -> Iterator[str]:
        """Say what is wrong after a publication that succeeded."""
        commits = [commit.commit_id for commit in self.api.list_repo_commits(self.repository)]
        tags = {tag.name: tag.target_commit for tag in self.api.list_repo_refs(self.repository).tags}
        if len(commits) != 3 + self.foreign:
            yield f"main has {len(commits)} commits"
        published = tags.get("v1")
        if published is None or published not in commits[: 1 + self.foreign]:
            yield f"tags are {tags}"
        elif not self.is_whole(published):
            yield "what is tagged is not the release"


@dataclass(frozen=True)
class Scene:
    """A situation for one publication."""

    codes: tuple[int, ...] = (4,)
    """Exit codes that are right."""
    reason: str = ""
    """A regular expression for the line that says why."""
    fault: Mapping[str, Any] | Callable[[Stage], Mapping[str, Any]] | None = None
    """Set up before it begins."""
    before: Callable[[Stage], object] | None = None
    """Done before it begins."""
    meanwhile: Callable[[Stage], object] | None = None
    """Done as soon as the fault, a pause, has begun."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables; their values may name {endpoint}, and {reader} and {stranger} for their tokens."""
    options: tuple[str, ...] = ("--patience", "6")
    private: bool = False
    long: bool = False
    end: Callable[[Stage], Iterator[str]] | None = Stage.end_faults
    """Checks what a second run of the command does; None to run the command once."""


def _pause(path: str, method: str = "POST") -> dict[str, Any]:
    return {"action": "delay", "seconds": 1.5, "method": method, "path": path}


def _forget(stage: Stage) -> dict[str, Any]:
    return {"action": "forget", "sha256": stage.sha256("extra.bin"), "method": "POST", "path": "/commit/"}


def _move_head(stage: Stage, **values: Any) -> dict[str, Any]:
    stage.foreign = 1
    return {"action": "move_head", "repo": stage.repository, "method": "POST", "path": "/commit/", **values}


def _lose_answer_and_move_head(stage: Stage) -> dict[str, Any]:
    stage.hub.fault("drop_after", method="POST", path="/commit/")
    return _move_head(stage, method="GET", path="/refs", skip=1)


def _change(stage: Stage) -> None:
    """Another commit changes a file that the release contains."""
    stage.foreign = 1
    content = b"---\nlicense: mit\n---\nForeign"
    stage.api.upload_file(path_or_fileobj=content, path_in_repo="README.md", repo_id=stage.repository)


def _spoil(name: str) -> Callable[[Stage], None]:
    def spoil(stage: Stage) -> None:
        content = bytearray((stage.release / name).read_bytes())
        content[-1] ^= 1
        (stage.release / name).write_bytes(content)

    return spoil


def _end_of_changed(stage: Stage) -> Iterator[str]:
    """Repair a release whose file was changed or lost, and publish it."""
    for name in ("extra.bin", "long.bin"):
        stage.list_file(name, os.urandom(20_000))
    stage.expect()
    done = stage.finish()
    if done.returncode:
        yield f"the repaired release is refused: {done.stderr[-300:]}"
    yield from stage.end_faults()


def _gate(stage: Stage) -> None:
    stage.api.update_repo_settings(stage.repository, gated="manual")


def _end_of_gated(stage: Stage) -> Iterator[str]:
    yield from stage.end_faults()
    command = [sys.executable, "-m", "converter", "verify", f"hf://{stage.repository}"]
    environment = stage.environment | {"HF_TOKEN": stage.hub.token("stranger")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 4 or "the repo is gated" not in done.stderr:
        yield f"a stranger gets exit {done.returncode}: {done.stderr[-300:]}"
    print(f"    to a stranger: {done.stderr.strip().splitlines()[-1]}")


def _end_of_lost(stage: Stage) -> Iterator[str]:
    """Do what the hint says: over Xet that helps, over LFS it changes nothing."""
    done = stage.finish(HF_HUB_DISABLE_XET="1")
    if done.returncode:
        yield f"it is lost for good: {done.stderr[-300:]}"
    yield from stage.end_faults()


def _end_of_corrupt(stage: Stage) -> Iterator[str]:
    if stage.api.list_repo_refs(stage.repository).tags:
        yield "what is damaged was tagged"
    again = stage.finish()
    if again.returncode != 4:
        yield f"the second run accepts what is damaged: exit {again.returncode}"


def _end_of_bad_tag(stage: Stage) -> Iterator[str]:
    done = stage.finish("--tag", "v2")
    tags = {tag.name: tag.target_commit for tag in stage.api.list_repo_refs(stage.repository).tags}
    if done.returncode or tags.get("v1") != stage.old or tags.get("v2") == stage.old or not stage.is_whole("v2"):
        yield f"another tag does not work: exit {done.returncode}, {tags}"


def _tag_old(stage: Stage) -> None:
    stage.api.create_tag(stage.repository, tag="v1", revision=stage.old)


def _silence(method: str, path: str) -> Scene:
    fault = {"action": "delay", "seconds": 60, "method": method, "path": path}
    return Scene(reason="does not answer in time", fault=fault, options=("--patience", "3"))


SCENES: dict[str, Scene] = {
    "a token that may only read": Scene(
        reason="403: Forbidden: you must use a write token",
        variables={"HF_TOKEN": "{reader}"},
    ),
    "a stranger": Scene(
        reason="403: You don't have the rights",
        variables={"HF_TOKEN": "{stranger}"},
    ),
    "a private repo of others": Scene(
        reason="403: You don't have the rights to create",
        private=True,
        variables={"HF_TOKEN": "{stranger}"},
    ),
    "no token": Scene(reason="no token was found", variables={"HF_TOKEN": ""}),
    "a gated repo of the user": Scene(codes=(0,), before=_gate, end=_end_of_gated),
    "private storage is full": Scene(
        reason="status 403.* storage",
        private=True,
        fault={
            "action": "status",
            "status": 403,
            "headers": {"X-Error-Message": "Private repository storage limit reached"},
            "path": "xet-write-token|objects/batch",
            "times": 0,
        },
    ),
    "an object is lost once": Scene(codes=(0,), fault=_forget),
    "an object is lost each time": Scene(
        reason="does not have a file that was uploaded",
        fault=lambda stage: _forget(stage) | {"times": 0},
        end=_end_of_lost,
    ),
    "a Hub that is busy for ever": Scene(
        reason="committing: the Hub answers with status 503. Try again later",
        fault={"action": "status", "status": 503, "method": "POST", "path": "/commit/", "times": 0},
    ),
    "the head moved (412)": Scene(reason="main has changed since it was read", fault=_move_head),
    "another commit changed our file (412)": Scene(
        reason="main has changed since it was read", fault=_pause("/commit/"), meanwhile=_change
    ),
    "the answer is lost, and another commit follows": Scene(codes=(0,), fault=_lose_answer_and_move_head),
    "the Hub refuses the card": Scene(
        reason="the Hub refuses the card: license is odd",
        fault={
            "action": "status",
            "status": 400,
            "method": "POST",
            "path": "validate-yaml",
            "headers": {"Content-Type": "application/json"},
            "body": '{"errors": [{"message": "license is odd"}], "warnings": []}',
        },
    ),
    "the tag is taken": Scene(reason="tag v1 points to", before=_tag_old, end=_end_of_bad_tag),
    "the tag is taken meanwhile (409)": Scene(
        reason="tag v1 points to", fault=_pause("/tag/"), meanwhile=_tag_old, end=_end_of_bad_tag
    ),
    "an object is damaged there": Scene(
        reason="extra.bin: (the Hub serves other bytes|[0-9]+ of [0-9]+ bytes have come|.*cannot be reached)",
        fault=lambda stage: {**_forget(stage), "action": "corrupt"},
        end=_end_of_corrupt,
    ),
    "a short file changes": Scene(
        codes=(1,),
        reason="extra.bin: has changed since it was examined",
        fault=_pause("/preupload/"),
        meanwhile=_spoil("extra.bin"),
        end=_end_of_changed,
    ),
    "a long file changes": Scene(
        codes=(1,),
        reason="long.bin: has changed since it was examined",
        fault=_pause("/preupload/"),
        meanwhile=_spoil("long.bin"),
        long=True,
        end=_end_of_changed,
    ),
    "a long file is removed": Scene(
        codes=(1,),
        reason="long.bin: has changed since it was examined",
        fault=_pause("/preupload/"),
        meanwhile=lambda stage: (stage.release / "long.bin").unlink(),
        long=True,
        end=_end_of_changed,
    ),
    "a file is removed while it is committed": Scene(
        codes=(1,),
        reason="long.bin: has changed since it was examined; the commit could not be checked",
        fault=_pause("/commit/"),
        meanwhile=lambda stage: (stage.release / "long.bin").unlink(),
        long=True,
        end=None,
    ),
    "silence on whoami": _silence("GET", "whoami"),
    "silence on the commit": _silence("POST", "/commit/"),
    "silence where an upload begins": Scene(
        codes=(0,),
        fault={"action": "delay", "seconds": 20, "path": "xet-write-token|objects/batch"},
        options=("--patience", "3"),
    ),
    "the repo has another name now": Scene(
        reason="is now called lab/another",
        fault={
            "action": "status",
            "status": 307,
            "headers": {"Location": "/api/models/lab/another"},
            "method": "GET",
            "path": r"/api/models/lab/tiny-\d+$",
        },
    ),
    "HF_HUB_OFFLINE": Scene(reason="HF_HUB_OFFLINE forbids", variables={"HF_HUB_OFFLINE": "1"}),
    "a proxy that is not there": Scene(
        reason="cannot be reached: it refuses the connection",
        variables={"NO_PROXY": "", "HTTP_PROXY": "http://user:secret@127.0.0.1:9"},
        options=("--patience", "1"),
    ),
    "HF_ENDPOINT with a slash": Scene(codes=(0,), variables={"HF_ENDPOINT": "{endpoint}/"}),
    "HF_HOME cannot be written to": Scene(codes=(0,), variables={"HF_HOME": "/proc/nowhere"}),
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
