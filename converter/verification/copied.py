"""The comparison of a component with a source that is quantized already: it must be a copy."""

from __future__ import annotations

import numpy as np

from converter.checkpoint.reader import TensorReader, open_reader, ranges
from converter.checkpoint.source import Checkpoint, SourceTensor
from converter.console import SILENT, Progress, Reporter
from converter.verification.audit import Audit
from converter.verification.measures import Fidelity
from converter.verification.report import list_problems

#: Bytes of a tensor that are compared at a time.
_PIECE_BYTES = 4 << 20


def is_quantized(source: Checkpoint) -> bool:
    """Whether the config of a source says that it is quantized."""
    return source.config.get("quantization_config") is not None


def compare_copied(audit: Audit, source: Checkpoint, *, reporter: Reporter = SILENT) -> Fidelity:
    """Compare every tensor of a component with the one of the same name in its source, which is quantized like it.

    Args:
        audit: the component.
        source: where it was copied from.
        reporter: shows progress.
    """
    own, others = audit.checkpoint.tensors, source.tensors
    problems = [f"{name} is not in the source" for name in sorted(own.keys() - others.keys())]
    problems += [f"{name} is missing" for name in sorted(others.keys() - own.keys())]
    shared = sorted(own.keys() & others.keys())
    total = sum(own[name].entry.bytes for name in shared)
    with reporter.progress("comparing", total) as shown, open_reader(source) as reader:
        different = [name for name in shared if not _are_same(own[name], others[name], reader, shown)]
    problems += [f"{name} differs from the source" for name in different]
    good = f"{len(own)} tensors are those of the source, which is quantized already"
    return Fidelity((list_problems("copied", problems, good),), ())


def _are_same(first: SourceTensor, second: SourceTensor, reader: TensorReader, progress: Progress) -> bool:
    if (first.entry.dtype, first.entry.shape) != (second.entry.dtype, second.entry.shape):
        return False
    for start, stop in ranges(first.entry.bytes, _PIECE_BYTES):
        pieces = np.empty((2, stop - start), np.uint8)
        for piece, tensor in zip(pieces, (first, second), strict=True):
            reader.read(tensor, start, piece)
        progress.advance(stop - start)
        if not np.array_equal(*pieces):
            return False
    return True
