"""One digest for all weights of a variant, which can be computed from the files of a release, too."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from converter.checkpoint.reader import TensorReader, ranges
from converter.checkpoint.source import Checkpoint
from converter.console import SILENT, Reporter

#: Bytes of a tensor that are hashed at a time.
_PIECE_BYTES = 1 << 20


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
    whole = hashlib.sha256()
    with TensorReader() as reader, reporter.progress("hashing", checkpoint.total_bytes) as progress:
        for name, tensor in sorted(checkpoint.tensors.items()):
            digest = hashlib.sha256()
            buffer = np.empty(min(tensor.entry.bytes, _PIECE_BYTES), np.uint8)
            for start, stop in ranges(tensor.entry.bytes, _PIECE_BYTES):
                reader.read(tensor, start, buffer[: stop - start])
                digest.update(buffer[: stop - start].data)
                progress.advance(stop - start)
                progress.refresh()
            line = [name, tensor.entry.dtype, tensor.entry.shape, digest.hexdigest()]
            whole.update(json.dumps(line).encode() + b"\n")
    return whole.hexdigest()
