"""Situations of their own that publish_faults goes through, and how each must end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.publish_stage import Stage


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


def _changed(name: str, happens: Callable[[Stage], object]) -> Scene:
    """Something happens to a file of the release before it is sent."""
    return Scene(
        codes=(1,),
        reason=f"{name}: has changed since it was examined",
        fault=_pause("/preupload/"),
        meanwhile=happens,
        long=name == "long.bin",
        end=_end_of_changed,
    )


def _remove_long(stage: Stage) -> None:
    (stage.release / "long.bin").unlink()


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
    "a short file changes": _changed("extra.bin", _spoil("extra.bin")),
    "a long file changes": _changed("long.bin", _spoil("long.bin")),
    "a long file is removed": _changed("long.bin", _remove_long),
    "a file is removed while it is committed": Scene(
        codes=(1,),
        reason="long.bin: has changed since it was examined; the commit could not be checked",
        fault=_pause("/commit/"),
        meanwhile=_remove_long,
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
