"""How far an upload has come, by how far its files have been read.

huggingface_hub shows bars of its own and tells nobody else. Linux tells of every open file of a process where it is
read next, whichever library reads it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from converter.console import Progress

_DESCRIPTORS = Path("/proc/self/fd")
_POSITIONS = Path("/proc/self/fdinfo")
_POLL_SECONDS = 0.25


@contextmanager
def reading_shown(files: Iterable[Path], progress: Progress) -> Iterator[None]:
    """While the block runs, count what is read of some files.

    At its end all of them count as read, whatever could be seen of it; if it fails, none does.

    Args:
        files: that the block sends away.
        progress: counts bytes.
    """
    sizes = {os.path.realpath(file): file.stat().st_size for file in files}
    seen = dict.fromkeys(sizes, 0)
    stopped = threading.Event()

    def look() -> None:
        while not stopped.wait(_POLL_SECONDS):
            for place, position in _positions(sizes):
                step = min(position, sizes[place]) - seen[place]
                if step > 0:
                    seen[place] += step
                    progress.advance(step)
            progress.refresh()

    thread = threading.Thread(target=look, name="progress", daemon=True)
    thread.start()
    read_to_the_end = False
    try:
        yield
        read_to_the_end = True
    finally:
        stopped.set()
        thread.join()
        # What failed is read again from its start.
        progress.advance((sum(sizes.values()) if read_to_the_end else 0) - sum(seen.values()))
        progress.refresh()


def _positions(files: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Where those of the files that are open will be read next."""
    # A file may be closed between two looks.
    with suppress(OSError):
        for descriptor in _DESCRIPTORS.iterdir():
            with suppress(OSError, ValueError):
                place = str(descriptor.readlink())
                if place in files:
                    first = (_POSITIONS / descriptor.name).read_text("ascii").partition("\n")[0]
                    yield place, int(first.partition(":")[2])
