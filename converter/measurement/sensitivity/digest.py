"""One digest for all weights of a variant: from what the scan measured, and from the files of a release.

It covers name, dtype, shape and bytes of every tensor, those that are kept as well, and depends neither on the order
of the tensors in files nor on the number of files. So it says whether a release holds the weights of a variant, though
the variant was never written. (Where SDNQ draws random numbers it does not: a conversion draws others than the scan.)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np

from converter.checkpoint.reader import TensorReader, ranges
from converter.checkpoint.source import Checkpoint, SourceTensor
from converter.console import SILENT, Progress, Reporter
from converter.conversion.planning.plan import Plan
from converter.measurement.sensitivity.figures import Figures
from converter.measurement.sensitivity.storage import Storage
from converter.threads import run_in_threads

#: Bytes of a tensor that are hashed at a time.
_PIECE_BYTES = 1 << 20

#: Name, safetensors dtype, shape, and sha256 of the bytes in hexadecimal digits.
_Described = tuple[str, str, tuple[int, ...], str]


def variant_digest(plan: Plan, stored: Mapping[str, Storage], figures: Figures) -> str:
    """The digest of the weights that a conversion by this plan would write.

    Args:
        plan: of the variant.
        stored: how it stores each tensor of the source, from ``storages``.
        figures: of every such storage, from ``scan``.

    Returns:
        sha256 in hexadecimal digits.
    """

    def describe() -> Iterable[_Described]:
        for tensor in plan.tensors:
            measured = figures[tensor.source, stored[tensor.source].key]
            yield tensor.spec.name, tensor.spec.dtype, tensor.spec.shape, measured.sha256[tensor.part]

    return _digest(describe())


def weights_digest(checkpoint: Checkpoint, *, reporter: Reporter = SILENT) -> str:
    """The digest of the weights of a component on disk, such as one of a release.

    Args:
        checkpoint: the component.
        reporter: shows progress.

    Returns:
        sha256 in hexadecimal digits.

    Raises:
        MissingInput: a file cannot be read.
        MalformedCheckpoint: a file has become shorter than its header said.
    """
    workers = len(os.sched_getaffinity(0))
    with TensorReader() as reader, reporter.progress("hashing", checkpoint.total_bytes) as progress:
        describe = partial(_describe, reader=reader, progress=progress)
        tensors = checkpoint.tensors.values()
        return _digest(run_in_threads(describe, tensors, workers=workers, name="hash", refresh=progress.refresh))


def _describe(tensor: SourceTensor, reader: TensorReader, progress: Progress) -> _Described:
    entry = tensor.entry
    digest = hashlib.sha256()
    buffer = np.empty(min(entry.bytes, _PIECE_BYTES), np.uint8)
    for start, stop in ranges(entry.bytes, _PIECE_BYTES):
        piece = buffer[: stop - start]
        reader.read(tensor, start, piece)
        digest.update(piece.data)
        progress.advance(stop - start)
    return entry.name, entry.dtype, entry.shape, digest.hexdigest()


def _digest(tensors: Iterable[_Described]) -> str:
    digest = hashlib.sha256()
    for tensor in sorted(tensors):
        digest.update(json.dumps(tensor).encode() + b"\n")
    return digest.hexdigest()
