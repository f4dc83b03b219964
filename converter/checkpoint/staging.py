"""The folder in which an output grows until it is complete, next to the output, with a journal of what is done.

    .NAME.lensconv/journal    a line that says what is being made, then one for each finished tensor
    .NAME.lensconv/release/   the files, at their final sizes from the start
    .NAME.lensconv/spool/     parts of weights whose place in a file is not known yet
    .NAME.lensconv/adapters/  factors of LoRA adapters that were converted from another format

A process that is killed leaves both; the next run with the same input continues after the last finished tensor. One
rename puts the finished folder in place, so that the output appears as a whole or not at all. (Where a file system
cannot exchange two folders, replacing one takes two renames; after a kill between them, the next run puts the old
folder back. Where it cannot rename the old folder at all, that is removed first; after a kill the next run finds the
new one finished, and goes on.) The journal remembers its folder by the inode, which a rename keeps. After a kill at any
moment, the next run can distinguish an unfinished folder, one that was put in place, and one that was replaced.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.folders import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    find_mount,
    inode_of,
    remove_in_order,
    rename_folder,
    sync_folder,
)
from converter.checkpoint.journal import Finished, JournalFile
from converter.checkpoint.writer import write_error, writing
from converter.errors import OutputError, printable

#: All that the folder ever contains, the journal last; anything else in it is not deleted.
_OWN_NAMES = ("release", "replaced", "spool", "adapters", "journal.new", "journal")
#: Journal entries of tensors that are spooled, not yet in their slots, begin with this.
SPOOLED = "spooled:"
#: Changes with every start of the machine, after which writes that were never synced may be lost.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: Parts of an identity in the words of users, where their names do not say it.
_WORDS = {
    "adapters": "LoRA adapters, their scales or their order",
    "components": "other components",
    "commit": "the commit of the source",
    "nonfinite": "--allow-nonfinite",
    "versions": "package versions",
    "environment": "environment variables",
}


@dataclass(frozen=True)
class Replacing:
    """How an existing output is replaced."""

    refuse: Callable[[Path], None]
    """Raises if the folder must not be replaced."""
    order: Callable[[Path], int]
    """When a file of it is removed, where it cannot be exchanged: those with the highest number last. What is left must
    at any moment be something that may be replaced."""


class Staging:
    """The folder in which one output grows; at most one process works on it.

    Nothing is written before ``open``.

    Args:
        output: where the finished folder will be.
        identity: everything that decides the output: JSON values by their names.
        replacing: how an existing folder is replaced; None if none may be.

    Raises:
        OutputError: the output exists and may not be replaced.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any], replacing: Replacing | None) -> None:
        # ".." cannot be followed through folders that do not exist yet.
        self.output = Path(os.path.realpath(output.parent)) / output.name if ".." in output.parts else output
        self._replacing = replacing
        self.identity = {**identity, "boot": _BOOT_ID.read_text() if _BOOT_ID.exists() else ""}
        self.folder = self.output.parent / f".{output.name}.lensconv"
        self.release = self.folder / "release"
        #: Where what is made of LoRA adapters is; every run makes it again.
        self.adapters = self.folder / "adapters"
        self._journal = JournalFile(self.folder / "journal")
        self._content = ""
        self._lock: int | None = None
        self._created_parents: list[Path] = []
        #: Whether the new folder is all that there is, because the old one is being removed.
        self._is_needed = False
        #: What is finished, by component.
        self._finished: dict[str, dict[str, Mapping[str, Any]]] = {}
        #: What an earlier run had begun, by component.
        self._begun: Mapping[str, Finished] = {}
        #: The tensor whose entry has the state of the random generator, by component.
        self._states: dict[str, str] = {}
        if output.name in ("", ".."):
            raise OutputError(f"{output}: OUT must end with a folder name")
        journal = self._journal.read()
        #: Whether an earlier run was killed right after it put this very output in place.
        self.was_published = (
            journal is not None and journal.identity == self.identity and journal.release == inode_of(self.output)
        )
        if not self.was_published:
            self._refuse_taken()

    @property
    def is_taken_by_another_command(self) -> bool:
        """Whether another command was interrupted while it made this output."""
        journal = self._journal.read()
        return journal is not None and journal.identity.keys() != self.identity.keys()

    def _refuse_taken(self) -> None:
        if not os.path.lexists(self.output):
            return
        is_plain = self.output.is_dir() and not self.output.is_symlink()
        mount = find_mount(self.output) if is_plain else None
        if mount is not None:
            hint = "Write to a folder inside it." if mount == self.output else "Unmount it, or choose another folder."
            raise OutputError(f"{mount}: is a mount point, which cannot be replaced", hint)
        if self._replacing is None:
            raise OutputError(f"{self.output}: exists already", "Choose another name, or use --overwrite.")
        if not is_plain:
            raise OutputError(f"{self.output}: is not a plain folder, and --overwrite replaces only folders")
        if Path.cwd().is_relative_to(self.output.resolve()):
            raise OutputError(f"{self.output}: contains the current folder", "Change to another folder first.")
        self._replacing.refuse(self.output)

    def open(self) -> None:
        """Create the folder and lock it against other processes.

        Raises:
            OutputError: it cannot be written, or another process is working on it.
            DiskError: the disk is full.
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
            # Another process has the lock, or has just finished and removed the folder that was locked here.
            raise OutputError(f"{self.output}: another conversion is writing it", "Wait for it to end.")
        self._put_back_replaced()

    def _put_back_replaced(self) -> None:
        """Undo the first of two renames, where a run was killed before the second."""
        replaced = self.folder / "replaced"
        if not replaced.exists() or os.path.lexists(self.output):
            return
        with writing(self.output):
            rename_folder(replaced, self.output, RENAME_NOREPLACE)
        self._refuse_taken()

    def resume(self, content: str, *, restart: bool) -> None:
        """Continue an interrupted run of the same conversion, or begin.

        Args:
            content: says what the slots are filled with; finished tensors count only where it is the same.
            restart: whether to drop what an earlier run left.

        Raises:
            OutputError: an interrupted run of another conversion is in the way.
        """
        journal = self._journal.read()
        # If the journal names another folder, this one is an old output that was exchanged for the new one.
        if journal is not None and not restart and journal.release == inode_of(self.release):
            different = sorted(
                key
                for key in {*self.identity, *journal.identity}
                if journal.identity.get(key) != self.identity.get(key)
            )
            if not different and journal.content == content:
                self._journal.resume(journal)
                self._content = content
                self._finished, self._states, self._begun = {}, {}, journal.begun
                for component, finished in journal.finished.items():
                    for tensor, line in finished.items():
                        self._remember(component, tensor, line)
                return
            if different not in ([], ["boot"]):
                words = ", ".join(_WORDS.get(key, key) for key in different if key != "boot")
                if commit := journal.identity.get("commit", ""):
                    words += f" (it converts {printable(str(commit))})"
                raise OutputError(
                    f"{self.output}: an interrupted conversion to this folder differs from this one in: {words}",
                    "Run the earlier command again, start over with --restart, or choose another folder.",
                )
        self.begin(content)

    def begin(self, content: str) -> None:
        """Empty the folder and begin a new journal; leave nothing when that fails.

        Args:
            content: as for ``resume``.

        Raises:
            OutputError: the folder contains something that lensconv did not make, or cannot be written.
            DiskError: the disk is full.
        """
        foreign = sorted(entry for entry in self.folder.iterdir() if entry.name not in _OWN_NAMES)
        if foreign:
            raise OutputError(f"{foreign[0]}: is in lensconv's work folder, which is emptied", "Move it elsewhere.")
        try:
            # The journal is removed first: after a kill in between, the next run ignores what is left.
            self._journal.remove()
            self._clear()
            self.release.mkdir()
            self._content = content
            self._finished, self._states, self._begun = {}, {}, {}
            self._write_journal()
        except OSError as error:
            self.discard()
            raise write_error(self.output, error) from error

    def component(self, name: str) -> StagedComponent:
        """The part of the folder and of the journal that belongs to one component.

        Args:
            name: of the component; empty outside of a pipeline.
        """
        return StagedComponent(self, name)

    def finished(self, component: str) -> Finished:
        """What is finished of a component; it changes while the work goes on."""
        return self._finished.setdefault(component, {})

    def begun(self, component: str) -> Finished:
        """What an interrupted run had begun of a component, by tensor; those that it finished as well."""
        return self._begun.get(component, {})

    def forget(self, component: str, *, keeps_spooled: bool) -> None:
        """Note that content of a component is lost; the other components stay finished.

        Args:
            component: its name.
            keeps_spooled: whether what is spooled is intact.

        Raises:
            OutputError: the journal cannot be written.
            DiskError: the disk is full.
        """
        finished = self._finished.get(component, {})
        self._finished[component] = {
            name: facts for name, facts in finished.items() if keeps_spooled and name.startswith(SPOOLED)
        }
        if self._states.get(component) not in self._finished[component]:
            self._states.pop(component, None)
        self._begun = {}
        with writing(self.output):
            self._write_journal()

    def _write_journal(self) -> None:
        first = {"identity": self.identity, "release": inode_of(self.release), "content": self._content}
        self._journal.begin(first, [line for finished in self._finished.values() for line in finished.values()])

    def note(self, component: str, tensor: str, facts: Mapping[str, Any]) -> None:
        """Note in the journal that all parts of a source tensor are in their slots. Any thread may call this.

        Raises:
            OSError: the journal cannot be written.
        """
        line = {"component": component, "tensor": tensor, **facts}
        self._remember(component, tensor, line)
        self._journal.note(line)

    def note_begun(self, component: str, tensor: str, facts: Mapping[str, Any]) -> None:
        """Note in the journal that a part of a source tensor is in its slots; as ``note``."""
        self._journal.note({"component": component, "begun": tensor, **facts})

    def _remember(self, component: str, tensor: str, line: Mapping[str, Any]) -> None:
        # Only the last state of a random generator counts, and each has thousands of characters.
        if "random_state" in line:
            kept = self._states.pop(component, None)
            if kept is not None:
                self._finished[component][kept] = {
                    key: value for key, value in self._finished[component][kept].items() if key != "random_state"
                }
            self._states[component] = tensor
        self._finished.setdefault(component, {})[tensor] = line

    def publish(self) -> None:
        """Put the finished folder in place, durably; by one rename, if the file system can.

        Raises:
            OutputError: the output's path was taken meanwhile, or the system refuses.
        """
        with writing(self.output):
            for folder, _, _ in os.walk(self.release):
                sync_folder(Path(folder))
            self._refuse_taken()
            if self._replacing is not None and os.path.lexists(self.output):
                self._replace(self._replacing)
            else:
                rename_folder(self.release, self.output, RENAME_NOREPLACE)
            sync_folder(self.output.parent)
        self.discard()

    def _replace(self, replacing: Replacing) -> None:
        try:
            rename_folder(self.release, self.output, RENAME_EXCHANGE)
        except OSError as error:
            # An overlay, as of a container, renames no folder that comes from a lower layer, as from an image.
            if error.errno != errno.EXDEV:
                raise
            self._is_needed = True
            remove_in_order(self.output, replacing.order)
            rename_folder(self.release, self.output, RENAME_NOREPLACE)
            self._is_needed = False

    def discard(self) -> None:
        """Remove the folder, its content, and the parents that were made for it; what cannot be removed stays."""
        self._journal.close()
        if self._is_needed:
            return
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

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class StagedComponent:
    """The part of a ``Staging`` that belongs to one component.

    Args:
        staging: of the whole output.
        name: of the component; empty outside of a pipeline.
    """

    def __init__(self, staging: Staging, name: str) -> None:
        self._staging = staging
        self.name = name
        #: Where its files are.
        self.folder = staging.release / name
        #: Where parts of its weights are until their place in a file is known.
        self.spool = staging.folder / "spool" / name

    @property
    def finished(self) -> Finished:
        """What is finished, by tensor of the source."""
        return dict(self._staging.finished(self.name))

    @property
    def nonfinite(self) -> dict[str, int]:
        """Numbers that are not finite, by the tensor of the source that contains them."""
        return self._noted("nonfinite")

    @property
    def damped(self) -> dict[str, float]:
        """How much second moments were damped, by the tensor of the source whose inputs they describe."""
        return self._noted("damped")

    def _noted(self, fact: str) -> dict[str, Any]:
        """A fact of the finished tensors that have it, by their names in the source."""
        found = {
            tensor.removeprefix(SPOOLED): facts[fact]
            for tensor, facts in self._staging.finished(self.name).items()
            if fact in facts
        }
        return dict(sorted(found.items()))

    def note(self, tensor: str, **facts: Any) -> None:
        """Note that a tensor of the source is finished; see ``Staging.note``."""
        self._staging.note(self.name, tensor, facts)

    @property
    def begun(self) -> Finished:
        """What an interrupted run had begun; see ``Staging.begun``."""
        return self._staging.begun(self.name)

    def note_begun(self, tensor: str, **facts: Any) -> None:
        """Note that a part of a source tensor is finished; see ``Staging.note_begun``."""
        self._staging.note_begun(self.name, tensor, facts)

    def forget(self, *, keeps_spooled: bool) -> Finished:
        """Note that content is lost; see ``Staging.forget``.

        Returns:
            What is still finished.
        """
        self._staging.forget(self.name, keeps_spooled=keeps_spooled)
        return self.finished
