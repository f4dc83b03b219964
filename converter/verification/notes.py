"""Notes about what is unusual in a checkpoint, but works."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator, Sequence

from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.files import read_json
from converter.checkpoint.weights import WEIGHT_STEMS
from converter.conversion.planning.patterns import is_judged
from converter.conversion.planning.rules import MISREAD_SCALES, has_misread_scales, named_dtype, option_of
from converter.conversion.recipe.recipe import NEAREST
from converter.errors import first_few
from converter.models.lens.layout import CLASS_NAME, lens_family
from converter.verification.audit import Audit
from converter.verification.configuration import shown
from converter.verification.manifest import code_files, unlisted_files


def unusual(audits: Sequence[Audit], *, is_compared: bool) -> Iterator[str]:
    """What users of a checkpoint may want to know, one sentence each.

    Args:
        audits: of components of one repo.
        is_compared: whether they were compared with their source.
    """
    for audit in audits:
        # Where there are several components, a note names its own.
        where = f"{audit.name}: " if len(audits) > 1 else ""
        yield from (where + note for note in audit.quantization.notes)
        if audit is audits[0]:
            yield from _about_manifest(audits, is_compared)
        yield from (where + note for note in _about_component(audit))
    if code := code_files(audits[0]):
        yield f"contains code, which was not run: {first_few(code)}; loaders run it with trust_remote_code=True"


def _about_manifest(audits: Sequence[Audit], is_compared: bool) -> Iterator[str]:
    first = audits[0]
    if first.manifest is None and not first.manifest_problem:
        yield "no manifest: files cannot be compared with what was written"
        if any(audit.class_name != CLASS_NAME for audit in audits) and not is_compared:
            yield "headers alone do not show whether tensors are missing; --against does"
    if first.manifest is not None:
        names = ", ".join(map(shown, first.manifest.components))
        for audit in audits:
            if audit.described is None:
                yield f"the manifest describes the component {names}, not {audit.name or 'this one'}"
    unlisted = unlisted_files(first)
    if unlisted:
        yield f"the manifest does not list {first_few(unlisted)}"


def _about_component(audit: Audit) -> Iterator[str]:
    if audit.described is not None and audit.described.rounding.method != NEAREST:
        yield f"codes are not SDNQ's own: they were chosen with rounding = {shown(audit.described.rounding.method)}"
    if audit.is_renamed:
        yield "config and weights name tensors differently, so dtypes cannot be checked from headers; use --load"
    longest = max(map(len, audit.checkpoint.tensors), default=0)
    complicated = [f"{pattern:.80}" for pattern in _patterns(audit) if not is_judged(pattern, longest)]
    if complicated:
        yield f"patterns that are too complex to check, assumed to match nothing: {first_few(complicated)}"
    yield from _about_options(audit)
    if audit.class_name == CLASS_NAME:
        yield from _about_modulation(audit)
    yield from _about_files(audit)


def _patterns(audit: Audit) -> list[str]:
    """All patterns of the configuration that name modules, each once."""
    config = audit.config
    lists = [config.get(key) or () for key in ("modules_to_not_convert", "modules_to_not_use_matmul")]
    lists += [config.get("modules_quant_config") or (), *(config.get("modules_dtype_dict") or {}).values()]
    return list(dict.fromkeys(pattern for patterns in lists for pattern in patterns))


def _about_options(audit: Audit) -> Iterator[str]:
    config = audit.config
    if any(module.parts["scale"].dtype == "F32" for module in audit.modules.values()):
        yield "scales are F32 (dequantize_fp32), twice the size of BF16"
    for option in ("use_svd", "use_hadamard", "use_codebook", "use_dynamic_quantization"):
        if config.get(option):
            yield f"{option} is on"
    if any(named_dtype(option_of(f"{name}.weight", "scale_dtype", config)) for name in audit.modules):
        yield "scales are quantized (scale_dtype)"
    if any(
        has_misread_scales(f"{name}.weight", config, has_zero_point="zero_point" in module.parts)
        for name, module in audit.modules.items()
    ):
        yield MISREAD_SCALES
    if config and config.get("sdnq_version") is None:
        yield "no sdnq_version: written by SDNQ before 0.2.2 or by another tool"


def _about_modulation(audit: Audit) -> Iterator[str]:
    def is_modulation(name: str) -> bool:
        return lens_family(name) in ("img_mod", "txt_mod")

    if any(is_modulation(f"{name}.weight") for name in audit.modules):
        yield "modulation layers are quantized, which causes periodic artifacts in images"
    dtypes = Counter(entry.dtype for name, entry in audit.kept.items() if is_modulation(name))
    for dtype, count in dtypes.items():
        if dtype in WEIGHT_DTYPES and dtype != "BF16":
            yield f"{count} tensors of modulation layers are {dtype}, not BF16"


def _about_files(audit: Audit) -> Iterator[str]:
    checkpoint = audit.checkpoint
    for header in checkpoint.headers:
        if header.metadata.get("format") != "pt":
            yield f"the header of {header.file.name} lacks the metadata format=pt; transformers refuses it"
        if not stat.S_IMODE(header.file.stat().st_mode) & stat.S_IROTH:
            yield f"the permissions of {header.file.name} let only its owner or group read it (`chmod a+r`)"
    if checkpoint.index is not None:
        metadata = read_json(checkpoint.index).get("metadata")
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        if total != checkpoint.total_bytes:
            yield f"the index says {shown(total)} bytes, the tensors take {checkpoint.total_bytes}"
    if not checkpoint.config:
        yield "no config.json next to the weights"
    elif checkpoint.stem not in WEIGHT_STEMS:
        yield f"loaders look for {' or '.join(WEIGHT_STEMS)}, not for {checkpoint.stem}"
