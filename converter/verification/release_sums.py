"""The sha256 of each tensor of a release, wherever its files are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import partial

import numpy as np

from converter.checkpoint.header import Header
from converter.checkpoint.reader import TensorReader, ranges
from converter.checkpoint.source import Checkpoint, SourceTensor
from converter.console import Progress, Reporter
from converter.hub.readers import StreamReader
from converter.hub.shadow import Shadow
from converter.threads import run_in_threads

#: Bytes that are read at a time.
_PIECE_BYTES = 4 << 20


def sum_release(
    checkpoint: Checkpoint, reporter: Reporter, *, shadow: Shadow | None = None, connections: int = 1
) -> dict[str, str]:
    """Read all weight files, and return the sha256 of each tensor by name, in hexadecimal digits.

    Args:
        checkpoint: the release's component.
        reporter: shows progress.
        shadow: in which it is, if it is on the Hub. Its files are read in order, and compared with the Hub's record.
        connections: files to read at a time, then.

    Raises:
        CorruptDownload: a file of the Hub has other bytes than it has recorded.
        HubError: the Hub refuses, or cannot be reached.
        InputError: a file cannot be read.
    """
    with reporter.progress("reading the release", checkpoint.total_bytes) as progress:
        if shadow is None:
            workers = len(os.sched_getaffinity(0))
            parts = run_in_threads(
                partial(_sum_local, progress),
                list(checkpoint.tensors.values()),
                workers=workers,
                name="release",
                refresh=progress.refresh,
            )
        else:
            parts = shadow.at_once(
                partial(_sum_file, shadow, progress),
                checkpoint.headers,
                connections=connections,
                refresh=progress.refresh,
            )
    return {name: digest for part in parts for name, digest in part.items()}


def _sum_local(progress: Progress, tensor: SourceTensor) -> dict[str, str]:
    with TensorReader() as reader:
        return _sum([tensor], reader, progress)


def _sum_file(shadow: Shadow, progress: Progress, header: Header) -> dict[str, str]:
    tensors = [
        SourceTensor(entry, header.file, header.data_start + entry.start)
        for entry in sorted(header.tensors.values(), key=lambda entry: (entry.start, entry.end))
    ]
    with StreamReader(shadow, header) as reader:
        sums = _sum(tensors, reader, progress)
        reader.finish()
    return sums


def _sum(tensors: Sequence[SourceTensor], reader: TensorReader, progress: Progress) -> dict[str, str]:
    sums = {}
    for tensor in tensors:
        checksum = hashlib.sha256()
        for start, stop in ranges(tensor.entry.bytes, _PIECE_BYTES):
            piece = np.empty(stop - start, np.uint8)
            reader.read(tensor, start, piece)
            checksum.update(piece.data)
            progress.advance(stop - start)
        sums[tensor.entry.name] = checksum.hexdigest()
    return sums
