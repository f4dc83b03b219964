"""Where an output grows until it is whole: a folder beside the place where it will be, and a journal of what is done.

    .NAME.lensconv/journal    a line that says what is being made, then one for each finished tensor
    .NAME.lensconv/release/   the files, at their final sizes from the start

A process that is killed leaves both; the next run with the same input goes on after the last finished tensor. The
finished folder is put in place by one rename, so that the output is there as a whole or not at all. (Where a file
system cannot exchange two folders, replacing one takes two renames; a run that was killed between them puts the old
folder back.) The journal
remembers which folder it speaks of (its inode, which a rename keeps): whatever the moment of a kill, the next run can
tell an unfinished folder from one that was put in place and from one that was replaced.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from converter.checkpoint.folders import RENAME_EXCHANGE, RENAME_NOREPLACE, inode_of, rename_folder, sync_folder
from converter.checkpoint.writer import write_error
from converter.errors import OutputError, printable

#: All that the folder ever holds, the journal last; anything else in it is somebody else's and is not deleted.
_OWN_NAMES = ("release", "replaced", "spool", "journal.new", "journal")
#: Journal entries of tensors that are spooled, not yet in their slots, begin with this.
SPOOLED = "spooled:"
#: Changes with every start of the machine, after which writes that were never synced may be lost.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Journal:
    """What an earlier run noted."""

    identity: Mapping[str, Any]
    """Everything that decides its output."""
    release: tuple[int, int]
    """Device and inode of the folder that it filled."""
    content: str
    """What the slots are filled with, as ``resume`` was told."""
    finished: Mapping[str, Mapping[str, Any]]
    """By tensor of the source, what was noted when it was done."""
    complete_bytes: int
    """Length of the journal without a last line that was cut off."""


class Staging:
    """The folder in which one output grows; at most one process works on it.

    Nothing is written before ``open``.

    Args:
        output: where the finished folder will be.
        identity: everything that decides the output, as JSON values by what to call them.
        refuse_replacing: raises if the folder that is there must not be replaced; None if none may be.

    Raises:
        OutputError: the output exists and may not be replaced.
    """

    def __init__(
        self, output: Path, identity: Mapping[str, Any], refuse_replacing: Callable[[Path], None] | None
    ) -> None:
        # Through folders that are yet to be made, ".." leads nowhere.
        self.output = Path(os.path.realpath(output.parent)) / output.name if ".." in output.parts else output
        self._refuse_replacing = refuse_replacing
        self.identity = {**identity, "boot": _BOOT_ID.read_text() if _BOOT_ID.exists() else ""}
        self.folder = self.output.parent / f".{output.name}.lensconv"
        self.release = self.folder / "release"
        self._journal_path = self.folder / "journal"
        self._journal: int | None = None
        self._lock: int | None = None
        self._created_parents: list[Path] = []
        #: Numbers that are not finite, by the tensor of the source that holds them.
        self.nonfinite: dict[str, int] = {}
        if output.name in ("", ".."):
            raise OutputError(f"{output}: the output needs a name of its own")
        journal = self._read_journal()
        #: Whether an earlier run was killed right after it put this very output in place.
        self.was_published = (
            journal is not None and journal.identity == self.identity and journal.release == inode_of(self.output)
        )
        if not self.was_published:
            self._refuse_taken()

    @property
    def is_taken_by_another_command(self) -> bool:
        """Whether what an interrupted run of another command left is in the way."""
        journal = self._read_journal()
        return journal is not None and journal.identity.keys() != self.identity.keys()

    def _refuse_taken(self) -> None:
        if not os.path.lexists(self.output):
            return
        where = printable(str(self.output))
        if self._refuse_replacing is None:
            raise OutputError(f"{where}: exists already", "Choose another folder, or replace it with --overwrite.")
        if self.output.is_symlink() or not self.output.is_dir() or self.output.is_mount():
            raise OutputError(f"{where}: is not a plain folder, which is all that --overwrite replaces")
        if Path.cwd().is_relative_to(self.output.resolve()):
            raise OutputError(f"{where}: holds the current folder", "Change to another folder first.")
        self._refuse_replacing(self.output)

    def open(self) -> None:
        """Create the folder and lock it against other processes.

        Raises:
            OutputError: it cannot be written, or another process is at work on it.
            DiskError: there is no space.
        """
        try:
            parent = self.output.parent
            for folder in reversed([folder for folder in (parent, *parent.parents) if not folder.exists()]):
                folder.mkdir()
                self._created_parents.append(folder)
            self.folder.mkdir(exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(self._lock)
            taken = (status.st_dev, status.st_ino) != inode_of(self.folder)
        except BlockingIOError:
            taken = True
        except OSError as error:
            self._remove_parents()
            raise write_error(self.output, error) from error
        if taken:
            # Either somebody holds the lock, or has just finished and removed the folder that we locked.
            self._created_parents.clear()
            raise OutputError(f"{self.output}: another conversion is writing it", "Wait for it to end.")
        self._put_back_replaced()

    def _put_back_replaced(self) -> None:
        """Undo the first of two renames, where a run was killed before the second."""
        replaced = self.folder / "replaced"
        if not replaced.exists() or os.path.lexists(self.output):
            return
        try:
            rename_folder(replaced, self.output, RENAME_NOREPLACE)
        except OSError as error:
            raise write_error(self.output, error) from error
        self._refuse_taken()

    def resume(self, content: str, *, restart: bool) -> Mapping[str, Mapping[str, Any]]:
        """Go on with an interrupted run of the same conversion, or begin.

        Args:
            content: says what the slots are filled with; finished tensors are of use only where it is the same.
            restart: whether to drop what an earlier run left.

        Returns:
            The finished tensors of the earlier run, with what its journal says of each.

        Raises:
            OutputError: an interrupted run of another conversion is in the way.
        """
        journal = self._read_journal()
        # A folder that is not the one the journal speaks of is an old output that was exchanged for the new one.
        if journal is not None and not restart and journal.release == inode_of(self.release):
            different = sorted(
                key
                for key in {*self.identity, *journal.identity}
                if journal.identity.get(key) != self.identity.get(key)
            )
            if not different and journal.content == content:
                os.truncate(self._journal_path, journal.complete_bytes)
                self._open_journal()
                for name, facts in journal.finished.items():
                    self._count(name, facts)
                return journal.finished
            if different not in ([], ["boot"]):
                raise OutputError(
                    f"{self.output}: an interrupted conversion differs in: {', '.join(different)}",
                    "Drop what it did with --restart, or convert to another folder.",
                )
        self.begin(content)
        return {}

    def begin(self, content: str) -> None:
        """Drop whatever is in the folder, and begin a new journal; leave nothing when that fails.

        Args:
            content: as for ``resume``.

        Raises:
            OutputError: the folder holds something that is not lensconv's, or cannot be written.
            DiskError: there is no space.
        """
        self.nonfinite.clear()
        self._close_journal()
        foreign = sorted(entry for entry in self.folder.iterdir() if entry.name not in _OWN_NAMES)
        if foreign:
            raise OutputError(f"{foreign[0]}: not made by lensconv", "Move it out of the way.")
        try:
            # The journal goes first: were the process killed in between, what is left would count as rubbish.
            self._journal_path.unlink(missing_ok=True)
            self._clear()
            self.release.mkdir()
            self._write_journal(content, {})
        except OSError as error:
            self.discard()
            raise write_error(self.output, error) from error

    def forget_slots(self, content: str, finished: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """Note that what was in the slots is lost; what is spooled stays.

        Args:
            content: as for ``resume``.
            finished: what ``resume`` returned.

        Returns:
            What is still finished.

        Raises:
            OutputError: the journal cannot be written.
            DiskError: there is no space.
        """
        kept = {name: facts for name, facts in finished.items() if name.startswith(SPOOLED)}
        self.nonfinite.clear()
        for name, facts in kept.items():
            self._count(name, facts)
        try:
            self._close_journal()
            self._write_journal(content, kept)
        except OSError as error:
            raise write_error(self.output, error) from error
        return kept

    def _write_journal(self, content: str, finished: Mapping[str, Mapping[str, Any]]) -> None:
        first = {"identity": self.identity, "release": inode_of(self.release), "content": content}
        draft = self.folder / "journal.new"
        draft.write_text("".join(json.dumps(line) + "\n" for line in (first, *finished.values())))
        draft.rename(self._journal_path)
        self._open_journal()

    def note(self, tensor: str, **facts: Any) -> None:
        """Note in the journal that all parts of a source tensor are in their slots. Any thread may call this.

        Raises:
            OSError: the journal cannot be written.
        """
        if self._journal is None:
            raise RuntimeError("the journal is not open; call resume or begin first")
        self._count(tensor, facts)
        os.write(self._journal, (json.dumps({"tensor": tensor, **facts}) + "\n").encode())

    def _count(self, tensor: str, facts: Mapping[str, Any]) -> None:
        if "nonfinite" in facts:
            self.nonfinite[tensor.removeprefix(SPOOLED)] = facts["nonfinite"]

    def publish(self) -> None:
        """Put the finished folder in place by one rename, durably.

        Raises:
            OutputError: something took the place meanwhile, or the system refuses.
        """
        try:
            for folder, _, _ in os.walk(self.release):
                sync_folder(Path(folder))
            self._refuse_taken()
            exists = os.path.lexists(self.output)
            rename_folder(self.release, self.output, RENAME_EXCHANGE if exists else RENAME_NOREPLACE)
            sync_folder(self.output.parent)
        except OSError as error:
            raise write_error(self.output, error) from error
        self._created_parents.clear()
        self.discard()

    def discard(self) -> None:
        """Remove what the folder holds, the folder, and the parents that were made for it; what cannot go, stays."""
        self._close_journal()
        try:
            self._clear()
            self.folder.rmdir()
        except OSError:
            return
        self._remove_parents()

    def _clear(self) -> None:
        for path in (self.folder / name for name in _OWN_NAMES):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _remove_parents(self) -> None:
        for folder in reversed(self._created_parents):
            try:
                folder.rmdir()
            except OSError:
                break

    def _read_journal(self) -> Journal | None:
        try:
            content = self._journal_path.read_bytes()
        except OSError:
            return None
        complete = content[: content.rfind(b"\n") + 1]
        try:
            first, *lines = [json.loads(line) for line in complete.splitlines()]
            device, inode = first["release"]
            finished = {line["tensor"]: line for line in lines}
            return Journal(first["identity"], (device, inode), first["content"], finished, len(complete))
        except (ValueError, TypeError, KeyError):
            return None

    def _open_journal(self) -> None:
        self._journal = os.open(self._journal_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _close_journal(self) -> None:
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close_journal()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
