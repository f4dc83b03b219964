"""Checksums of the weight files, computed while they are still being written.

A checksum needs a file from front to back, and workers finish tensors in nearly that order. A thread follows them up
to the first unfinished slot. It reads what it hashes back from the page cache, and starts to write it to the disk.
"""

from __future__ import annotations

import errno
import hashlib
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from converter.checkpoint.layout import FileLayout, Layout
from converter.conversion.execution.writeback import WriteBack
from converter.threads import HeldSignals, wait_for

#: Bytes read back at a time.
READ_BYTES = 1 << 20


class FollowingHasher:
    """Hashes the files of a layout as their slots are filled, in a thread that runs inside a ``with`` block.

    Args:
        folder: where the files are.
        layout: what the files contain.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder = folder
        self._layout = layout
        self._finished: set[str] = set()
        self._news: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()
        self._stopped = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hasher")

    def __enter__(self) -> FollowingHasher:
        try:
            with HeldSignals():
                self._result = self._pool.submit(self._run)
        except BaseException:
            # A signal that came meanwhile is handled here; the thread would wait for slots for ever.
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what is not done, and wait for the thread."""
        self._stopped = True
        self._news.put(())
        self._pool.shutdown()

    def finish_slot(self, *names: str) -> None:
        """Say that tensors are in their slots. Any thread may call this."""
        self._news.put(names)

    def digests(self) -> dict[str, str]:
        """Wait for the sha256 of every file, in hexadecimal digits; all slots must be finished.

        Raises:
            OSError: a file could not be read back.
        """
        return wait_for(self._result)

    def _run(self) -> dict[str, str]:
        digests = {}
        for file in self._layout.files:
            digest = self._hash(file)
            if digest is not None:
                digests[file.name] = digest
        return digests

    def _hash(self, file: FileLayout) -> str | None:
        ends = sorted(
            (slot.offset + slot.bytes, name) for name, slot in self._layout.slots.items() if slot.file == file.name
        )
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(READ_BYTES))
        with (self._folder / file.name).open("rb", buffering=0) as stream:
            write_back = WriteBack(stream.fileno())
            for end, name in (*ends, (file.total_bytes, None)):
                if name is not None and not self._wait_for(name):
                    return None
                while stream.tell() < end:
                    if self._stopped:
                        return None
                    count = stream.readinto(buffer[: end - stream.tell()])
                    if not count:
                        raise OSError(errno.EIO, "a file became shorter while it was written", file.name)
                    digest.update(buffer[:count])
                    write_back.advance(stream.tell())
        return digest.hexdigest()

    def _wait_for(self, name: str) -> bool:
        while name not in self._finished and not self._stopped:
            self._finished.update(self._news.get())
        return not self._stopped
