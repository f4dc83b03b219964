"""Writing a checkpoint into slots: preallocated files, any order, any thread.

The writer of safetensors needs every tensor in memory at once. This one needs only the layout, which fixes the header
and the position of every byte before the first tensor exists.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from converter.checkpoint.layout import Layout
from converter.checkpoint.open_files import OpenFiles
from converter.errors import FULL_DISK, DiskError, OutputError, ResourceError, lacking, reason_of


class SlotWriter:
    """Writes the weight files of a layout into a folder.

    Files are created at their final size, so that a full disk shows before any work is done, and with the mode that
    the umask asks for (safetensors' writer leaves 0600). ``write`` may be called from several threads.

    Args:
        folder: is made if it is not there; files of an earlier, interrupted run are kept and filled up.
        layout: what to write.

    Raises:
        DiskError: the disk is full.
        OutputError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self._layout = layout
        self._files = OpenFiles(os.O_RDWR | os.O_CREAT, synced=True)
        # Linux lets one thread at a time write to a file, and the others wait for it at full speed.
        self._turns = {file.name: threading.Lock() for file in layout.files}
        with writing(folder):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for file in layout.files:
                    with self._files.opened(folder / file.name) as descriptor:
                        _allocate(descriptor, file.total_bytes)
                    self.write(file.name, 0, file.header)
            except OSError:
                self.close()
                raise

    def write(self, file: str, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at an offset of a file.

        Raises:
            OSError: the system could not.
        """
        view = memoryview(data)
        if not view.nbytes:
            return
        view = view.cast("B")
        with self._turns[file], self._files.opened(self.folder / file) as descriptor:
            while view:
                written = os.pwrite(descriptor, view, offset)
                view = view[written:]
                offset += written

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        for file in self._layout.files:
            with self._files.opened(self.folder / file.name) as descriptor:
                os.fsync(descriptor)

    def close(self) -> None:
        """Close the files; what was written stays."""
        self._files.close()

    def __enter__(self) -> SlotWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _allocate(descriptor: int, size: int) -> None:
    if os.fstat(descriptor).st_size > size:
        os.ftruncate(descriptor, size)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        # Some file systems cannot reserve space; there the file grows as it is written.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
            raise
        os.ftruncate(descriptor, size)


def write_error(path: Path, error: OSError) -> ResourceError | OutputError:
    """The error that says why a file or folder could not be written."""
    if error.errno in (*FULL_DISK, errno.EFBIG):
        return DiskError(f"{path}: {reason_of(error)}", "Free some space, or write to another disk.")
    refused = OutputError(f"{path}: cannot be written: {reason_of(error)}", "Write to another folder.")
    return lacking(error, path) or refused


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise the ``write_error`` of a path for any ``OSError`` in the block."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def refuse_taken_place(output: Path, *, overwrite: bool) -> None:
    """Refuse a path where a file cannot be written, before its content is made.

    Args:
        output: the file.
        overwrite: whether an existing file may be replaced.

    Raises:
        OutputError: the path is taken, or no file can be written there.
    """
    if output.is_dir():
        raise OutputError(f"{output}: is a folder", "Name a file in it.")
    if os.path.lexists(output) and not overwrite:
        raise OutputError(f"{output}: exists already", "Choose another name, or replace it with --overwrite.")
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder", "Create it first.")
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"{output.parent}: cannot be written", "Check its permissions.")


def folder_inside(root: Path, name: str) -> Path:
    """A folder below another, whether it exists or not.

    Raises:
        OutputError: a link leads out of the root.
    """
    folder = root / name
    try:
        is_inside = folder.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{folder}: cannot be followed: {error}", "Remove the link.") from error
    if not is_inside:
        raise OutputError(
            f"{folder}: a link leads to {folder.resolve()}, outside of {root}",
            "Remove it, or choose another folder with --out.",
        )
    return folder


def replace_file(output: Path, content: bytes) -> None:
    """Write a file completely or not at all, over an existing one if there is one.

    Raises:
        OutputError: it cannot be written.
        DiskError: the disk is full.
    """
    replace_file_in_pieces(output, [content])


def replace_file_in_pieces(output: Path, pieces: Iterable[bytes]) -> None:
    """Do what ``replace_file`` does, with content that comes in pieces.

    Raises: as ``replace_file``, and what the pieces raise.
    """
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    _remove_abandoned(output)
    with writing(output):
        try:
            with draft.open("xb") as stream:
                for piece in pieces:
                    stream.write(piece)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(output)
        finally:
            draft.unlink(missing_ok=True)


def link_file(source: Path, output: Path) -> None:
    """Give a file a second name, or copy it where that is impossible, completely or not at all.

    Args:
        source: the file, which nobody changes in place.
        output: the name; an existing file is replaced.

    Raises:
        OutputError: it cannot be written.
        DiskError: the disk is full.
    """
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    _remove_abandoned(output)
    with writing(output):
        try:
            try:
                os.link(source, draft)
            except OSError:
                shutil.copyfile(source, draft)
                with draft.open("rb") as stream:
                    os.fsync(stream.fileno())
            draft.replace(output)
        finally:
            # Renaming one name of a file to another one of the same file leaves both.
            draft.unlink(missing_ok=True)


def _remove_abandoned(output: Path) -> None:
    """Remove drafts of a file whose process was killed."""
    for draft in output.parent.glob(f".{glob.escape(output.name)}.*"):
        number = draft.name.rpartition(".")[2]
        if number.isdecimal() and not Path("/proc", number).exists():
            with suppress(OSError):
                draft.unlink()
