"""How far a quantized checkpoint is from its source, weight by weight.

Both are read tensor by tensor. SDNQ turns codes back into numbers. Tensors that were kept must equal the source,
rounded to their new dtype, bit for bit. Quantized weights are compared with the source as it is, in float64.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.reader import TensorReader, open_reader, ranges
from converter.checkpoint.source import Checkpoint, SourceTensor
from converter.console import SILENT, Progress, Reporter
from converter.conversion.adapters.additions import Addition
from converter.conversion.adapters.weights import read_added
from converter.conversion.kernels.sdnq import as_tensor
from converter.conversion.planning.rules import PARTS
from converter.errors import UnsupportedCheckpoint
from converter.libraries import QUANTIZING_ERRORS
from converter.models.classes import TORCH_DTYPES
from converter.models.empty import build_empty_model, saved_names, written_config
from converter.models.families import family
from converter.threads import run_in_threads
from converter.verification.audit import Audit
from converter.verification.configuration import differing_entries
from converter.verification.dequantizing import dequantize, prepare_quantized
from converter.verification.measures import Fidelity, ModuleFidelity, by_ratio, cosine_of, ratio_db
from converter.verification.nearness import compare_errors
from converter.verification.report import Check, list_problems

#: Numbers of a kept tensor that are compared at a time.
PIECE_ELEMENTS = 1 << 20
#: The dtypes of unquantized weights.
_FLOATS = frozenset(TORCH_DTYPES[name] for name in WEIGHT_DTYPES)


def measure_fidelity(
    audit: Audit,
    source: Checkpoint,
    *,
    reporter: Reporter = SILENT,
    fail_under_sqnr: float | None = None,
    additions: Mapping[str, Addition] | None = None,
) -> Fidelity:
    """Compare a quantized checkpoint with the one that it was made from.

    Args:
        audit: the quantized checkpoint.
        source: the unquantized one.
        reporter: shows progress.
        fail_under_sqnr: least SQNR of a module, in dB, that passes.
        additions: what adapters added to the source first, by tensor.

    Raises:
        UnsupportedCheckpoint: the source is not of the class that the checkpoint names, or SDNQ cannot prepare it.
    """
    pair = _Pair(audit, source, additions or {})
    checks = [*_check_config(audit, source, pair.written_config), pair.check_plan()]
    total = sum(source.tensors[name].entry.bytes for name in pair.work)
    workers = len(os.sched_getaffinity(0))
    with reporter.progress("comparing", total) as shown, open_reader(source) as reader:
        compare = partial(pair.compare, reader=reader, progress=shown)
        results = run_in_threads(compare, pair.work, workers=workers, name="fidelity", refresh=shown.refresh)
    different = [result for result in results if isinstance(result, str) and result]
    modules = tuple(result for result in results if isinstance(result, ModuleFidelity))
    kept = len(results) - len(modules)
    good = f"{kept} kept tensors equal the source, rounded to their dtype"
    checks.append(list_problems("kept equal source", different, good))
    checks += _check_modules(modules, fail_under_sqnr)
    return Fidelity(tuple(checks), modules)


def _check_config(audit: Audit, source: Checkpoint, written: Mapping[str, Any]) -> Iterable[Check]:
    """Compare the configs: loaders use that of the quantized checkpoint, this comparison uses that of the source.

    What the library itself changes when it saves the model, such as ``tie_word_embeddings`` of T5, may differ.
    """
    config = audit.checkpoint.config
    if config and source.config:
        unlike_written = differing_entries(config, written)
        different = [name for name in differing_entries(config, source.config) if name in unlike_written]
        problems = [f"config.json and the source's disagree on {', '.join(different)}"] if different else []
        yield list_problems("config of the source", problems, "config.json agrees with that of the source")


def _check_modules(modules: Sequence[ModuleFidelity], fail_under_sqnr: float | None) -> Iterable[Check]:
    broken = [f"{module.name} is not finite" for module in modules if not module.is_finite]
    yield list_problems("finite", broken, f"{len(modules)} weights have finite numbers only")
    far = [
        f"{module.name} ({module.sqnr_db:.2f} dB) is farther from the source than quantization explains"
        for module in sorted(modules, key=by_ratio)
        if module.is_finite and not module.excess <= 1
    ]
    yield list_problems("near source", far, f"{len(modules)} weights are as close to the source as quantization allows")
    if fail_under_sqnr is not None:
        low = sorted((module for module in modules if not module.sqnr_db >= fail_under_sqnr), key=by_ratio)
        worst = min((module.sqnr_db for module in modules), default=math.inf)
        problems = [f"{bad.name} has {bad.sqnr_db:.2f} dB, less than {fail_under_sqnr:g}" for bad in low]
        yield list_problems("sqnr", problems, f"all weights have {worst:.2f} dB or more")


class _Pair:
    """A quantized checkpoint and its source, matched by the names that the class gives them."""

    def __init__(self, audit: Audit, source: Checkpoint, additions: Mapping[str, Addition]) -> None:
        self._audit = audit
        self._quantized = audit.checkpoint
        self._source = source
        self._additions = additions
        if not audit.modules:
            raise UnsupportedCheckpoint(f"{audit.root}: contains no quantized modules to compare")
        if audit.class_name and source.class_name and audit.class_name != source.class_name:
            raise UnsupportedCheckpoint(
                f"{source.folder}: is a {source.class_name}, the quantized checkpoint a {audit.class_name}",
                "Give the checkpoint that it was made from.",
            )
        self._empty = build_empty_model(source)
        self._dequantizers = prepare_quantized(self._empty, audit.config)
        self._planned: dict[str, torch.Tensor] = {}
        self._files: dict[str, dict[str, str]] = {}
        self.work = self._match()

    @property
    def written_config(self) -> dict[str, Any]:
        """``config.json`` as the library would save it with the model."""
        return written_config(self._empty)

    def _match(self) -> dict[str, tuple[str, str]]:
        """The kind (``kept`` or ``quantized``) and the name in the quantized file, by tensor of the source."""
        names = {id(tensor): name for name, tensor in self._empty.model.state_dict(keep_vars=True).items()}
        work: dict[str, tuple[str, str]] = {}
        for file_name, tensor in saved_names(self._empty).items():
            self._planned[file_name] = tensor
            path, _, part = names[id(tensor)].rpartition(".")
            if path in self._dequantizers and part in PARTS:
                work[self._empty.sources[path + ".weight"]] = "quantized", path
                self._files.setdefault(path, {})[part] = file_name
            else:
                work[self._empty.sources[names[id(tensor)]]] = "kept", file_name
        return work

    def check_plan(self) -> Check:
        """Compare the tensors with those that SDNQ would write for the source, in both directions."""
        present = {name: tensor.entry for name, tensor in self._quantized.tensors.items()}
        wrong = {name: f"{name} is missing" for name in sorted(self._planned.keys() - present.keys())}
        for name in sorted(self._planned.keys() & present.keys()):
            planned, found = self._planned[name], present[name]
            if tuple(planned.shape) != found.shape:
                wrong[name] = f"{name} has shape {list(found.shape)}, should have {list(planned.shape)}"
            elif not _is_dtype(found.dtype, planned.dtype):
                wrong[name] = f"{name} is {found.dtype}, should be {planned.dtype}"
        # Wrong tensors cannot be compared; all others are.
        for source, (kind, target) in list(self.work.items()):
            if wrong.keys() & ({target} if kind == "kept" else set(self._files[target].values())):
                del self.work[source]
        problems = list(wrong.values())
        problems += [f"{name} is unexpected" for name in sorted(present.keys() - self._planned.keys())]
        return list_problems("plan", problems, f"all {len(self._planned)} tensors that SDNQ plans, and no others")

    def compare(self, name: str, reader: TensorReader, progress: Progress) -> ModuleFidelity | str:
        """Compare one tensor of the source with its quantized form.

        Returns:
            For a quantized weight its figures; for a kept tensor the problem, or an empty string.
        """
        kind, target = self.work[name]
        tensor = self._source.tensors[name]
        if kind == "kept":
            return self._compare_kept(tensor, self._quantized.tensors[target], reader, progress)
        result = self._compare_quantized(tensor, target, reader)
        progress.advance(tensor.entry.bytes)
        return result

    def _compare_kept(self, source: SourceTensor, kept: SourceTensor, reader: TensorReader, progress: Progress) -> str:
        where, dtype = kept.entry.name, TORCH_DTYPES[kept.entry.dtype]
        # Each piece of a repo on the Hub would be a request.
        is_read_whole = source.entry.name in self._additions or self._source.open_other is not None
        whole = self._original(source, reader).reshape(-1) if is_read_whole else None
        different = 0
        for start, stop in ranges(math.prod(source.entry.shape), PIECE_ELEMENTS):
            original = _read_piece(source, start, stop, reader) if whole is None else whole[start:stop]
            expected = original.to(dtype).view(torch.uint8)
            different += int((expected != _read_piece(kept, start, stop, reader).view(torch.uint8)).sum())
            progress.advance((stop - start) * TORCH_DTYPES[source.entry.dtype].itemsize)
        return f"{where} differs in {different} bytes from the source, rounded to its dtype" if different else ""

    def _original(self, source: SourceTensor, reader: TensorReader) -> torch.Tensor:
        """A tensor of the source, with what adapters added to it."""
        addition = self._additions.get(source.entry.name)
        if addition is not None:
            return read_added(addition, source, reader)
        return as_tensor(reader.read_all(source), source.entry.dtype, source.entry.shape)

    def _compare_quantized(self, source: SourceTensor, path: str, reader: TensorReader) -> ModuleFidelity:
        parts = {}
        for part, file_name in self._files[path].items():
            stored = self._quantized.tensors[file_name]
            parts[part] = as_tensor(reader.read_all(stored), stored.entry.dtype, stored.entry.shape)
        original = self._original(source, reader)
        dequantizer = self._dequantizers[path]
        try:
            restored = dequantize(dequantizer, parts)
            is_calibrated = self._audit.is_calibrated(path)
            nearness = compare_errors(dequantizer, parts, restored, original, is_calibrated=is_calibrated)
        except QUANTIZING_ERRORS as error:
            raise UnsupportedCheckpoint(
                f"{self._audit.root}: SDNQ cannot dequantize {path}: {str(error) or repr(error)}",
                "Its tensors or its quantization config are wrong, or of another version of SDNQ.",
            ) from error
        energy = noise = dot = length = 0.0
        largest = [0.0]
        flat = original.reshape(-1), restored.reshape(-1)
        for start, stop in ranges(original.numel(), PIECE_ELEMENTS):
            wanted, got = flat[0][start:stop].double(), flat[1][start:stop].double()
            difference = got - wanted
            energy += float(wanted.square().sum())
            noise += float(difference.square().sum())
            dot += float((wanted * got).sum())
            length += float(got.square().sum())
            largest.append(float(difference.abs().max()))
        return ModuleFidelity(
            name=path,
            family=family(f"{path}.weight", self._audit.class_name),
            sqnr_db=ratio_db(energy, noise),
            max_abs_error=math.nan if math.isnan(noise) else max(largest),
            max_error_steps=nearness.max_error_steps,
            cosine=cosine_of(energy, length, dot, noise),
            energy=energy,
            noise=noise,
            excess=nearness.excess,
        )


def _read_piece(tensor: SourceTensor, start: int, stop: int, reader: TensorReader) -> torch.Tensor:
    """Some numbers of a tensor, from the first to before the last."""
    dtype = TORCH_DTYPES[tensor.entry.dtype]
    data = np.empty((stop - start) * dtype.itemsize, np.uint8)
    reader.read(tensor, start * dtype.itemsize, data)
    return torch.from_numpy(data).view(dtype)


def _is_dtype(found: str, planned: torch.dtype) -> bool:
    """Whether a tensor may have a dtype where SDNQ plans another: floats may be wider or narrower, codes may not."""
    if planned in _FLOATS:
        return found in WEIGHT_DTYPES
    return bool(TORCH_DTYPES.get(found) == planned)
