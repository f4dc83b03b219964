"""What each publication of publish_faults begins with, how it is run, and how its end is judged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from converter.conversion.release.manifest import MANIFEST_NAME, STATE_FOLDER
from converter.hub.addresses import HubAddress
from converter.hub.remote import RemoteRepo
from converter.publication.files import PublishedFile, compare
from converter.publication.preflight import examine_release
from tests.faulty_hub import FaultyHub

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
    kept: tuple[str, ...] = ()
    """Files of others in the repo."""
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
        # The manifest of the older release lists one of the files that the newer one lacks.
        manifest = json.loads(contents[MANIFEST_NAME])
        manifest["files"].append({"name": "gone.json"})
        contents |= {MANIFEST_NAME: json.dumps(manifest).encode(), "LICENSE": b"of somebody"}
        self.kept = ("LICENSE",)
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
        """Whether a revision is the release, and what others put there."""
        difference = compare(self.expected, self.remote(revision).files, ["gone.json"])
        return not difference and {*self.kept} <= {*difference.kept}

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
