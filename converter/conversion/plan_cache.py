"""What SDNQ planned in earlier conversions, in a folder of the user.

A plan depends on names, shapes and dtypes of the source, its config, the recipe, and what ``fingerprint`` covers. An
entry is a file that is named after a digest of all that, so one that does not apply is never found. It contains a
digest of itself; an entry that is damaged, or that another user owns, does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.writer import replace_file, write_error
from converter.conversion.fingerprint import fingerprint
from converter.conversion.planner_process import PlanAnswer
from converter.conversion.planning.plan_json import plan_from_json, plan_to_json
from converter.conversion.request import Target

#: The variable that names another folder.
FOLDER_VARIABLE = "LENSCONV_CACHE"
#: Entries that are kept, the newest first. One has 0.1 to 2 MB.
MAXIMUM_ENTRIES = 100
#: Limit for an entry, in bytes.
MAXIMUM_BYTES = 64_000_000


def cache_folder() -> Path:
    """Where lensconv keeps what later runs may use."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    # Imported here: only conversions need it.
    from platformdirs import user_cache_path

    return user_cache_path("lensconv")


class PlanCache:
    """Entries in a folder, which is made when the first one is kept.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "plans"
        self._files: dict[int, tuple[Target, Path | None]] = {}

    def find(self, target: Target) -> PlanAnswer | None:
        """What SDNQ planned for such a target before; None if that is not known."""
        file = self._file(target)
        content = _read(file) if file else None
        return _decode(content, target) if content else None

    def keep(self, target: Target, answer: PlanAnswer) -> None:
        """Keep an answer, unless numbers of the source decided something.

        Raises:
            OutputError: the folder cannot be written.
            DiskError: the disk is full.
        """
        file = self._file(target)
        if file is None or answer.plan.depends_on_numbers:
            return
        content = {"kernel_agrees": answer.kernel_agrees, "plan": plan_to_json(answer.plan)}
        text = json.dumps(content)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.folder, error) from error
        replace_file(file, json.dumps({"sha256": _digest(text), "content": text}).encode())
        self._remove_oldest()

    def _file(self, target: Target) -> Path | None:
        # What was asked for is what is kept: importing torch to plan sets variables that are a part of the key.
        if id(target) not in self._files:
            self._files[id(target)] = target, self._name(target)
        return self._files[id(target)][1]

    def _name(self, target: Target) -> Path | None:
        everything = fingerprint()
        if everything is None:
            return None
        checkpoint = target.checkpoint
        key = [
            everything,
            checkpoint.class_name,
            checkpoint.loaded_class,
            checkpoint.config,
            checkpoint.index is None,
            [[name, tensor.entry.dtype, tensor.entry.shape] for name, tensor in checkpoint.tensors.items()],
            repr(target.recipe),
        ]
        return self.folder / f"{_digest(json.dumps(key))}.json"

    def _remove_oldest(self) -> None:
        entries = []
        for file in self.folder.glob("*.json"):
            try:
                entries.append((file.stat().st_mtime, file))
            except OSError:
                continue
        for _, file in sorted(entries)[:-MAXIMUM_ENTRIES]:
            file.unlink(missing_ok=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(file: Path) -> str | None:
    """The content of an entry; None unless it is a plain file of this user."""

    def open_at_once(path: str, flags: int) -> int:
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)

    try:
        with open(file, encoding="utf-8", opener=open_at_once) as stream:
            status = os.fstat(stream.fileno())
            is_own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
            return stream.read() if is_own and status.st_size <= MAXIMUM_BYTES else None
    except (OSError, UnicodeDecodeError):
        return None


def _decode(content: str, target: Target) -> PlanAnswer | None:
    try:
        entry = json.loads(content)
        text = entry["content"]
        if _digest(text) != entry["sha256"]:
            return None
        found: Mapping[str, Any] = json.loads(text)
        answer = PlanAnswer(plan_from_json(found["plan"]), bool(found["kernel_agrees"]))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None
    names = target.checkpoint.tensors.keys()
    return answer if all(tensor.source in names for tensor in answer.plan.tensors) else None
