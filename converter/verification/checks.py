"""Checks that need headers and small files only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.prefixes import unloadable_names
from converter.conversion.planning.rules import weight_format
from converter.models.lens.layout import CLASS_NAME, lens_family
from converter.verification.audit import Audit
from converter.verification.configuration import shown
from converter.verification.manifest import check_manifest
from converter.verification.parts import check_parts
from converter.verification.report import Check, about, list_problems


def check_repo(audits: Sequence[Audit]) -> list[Check]:
    """Make all checks that need headers and small files only: of each component, and of the manifest.

    Args:
        audits: of components of one repo.
    """
    named = len(audits) > 1
    checks = [check for audit in audits for check in about(audit.name if named else "", check_headers(audit))]
    manifest = check_manifest(audits)
    return [*checks, *([manifest] if manifest is not None else [])]


def check_headers(audit: Audit) -> Iterator[Check]:
    """Make the checks of one component that need headers and small files only."""
    yield _check_index(audit)
    yield _check_stray_files(audit)
    yield _check_config(audit)
    yield _check_quantized(audit)
    yield check_parts(audit)
    yield _check_kept(audit)
    if audit.class_name == CLASS_NAME:
        yield _check_modulation(audit)
    unloadable = unloadable_names(audit.checkpoint.tensors)
    if unloadable:
        yield Check("names", False, unloadable)
    # Without a config, the size of the model is unknown.
    elif audit.class_name == CLASS_NAME and audit.checkpoint.config:
        yield _check_lens_names(audit)


def _check_index(audit: Audit) -> Check:
    checkpoint = audit.checkpoint
    problems = [problem.message for problem in checkpoint.problems]
    good = f"{len(checkpoint.headers)} files and their index agree" if checkpoint.index else "one file, no index needed"
    return list_problems("index", problems, good)


def _check_stray_files(audit: Audit) -> Check:
    stray = [
        f"{file.name} is not part of the checkpoint, but SDNQ's loader would read it"
        for file in audit.checkpoint.stray_files
    ]
    return list_problems("stray files", stray, "no other weights in the folder")


def _check_config(audit: Audit) -> Check:
    problems = [audit.quantization.problem] if audit.quantization.problem else []
    if not audit.class_name:
        problems.append("config.json names no class")
    # Dtypes of weights are checked module by module.
    for option in ("scale_dtype", "zero_point_dtype", "quantized_matmul_dtype"):
        dtype = audit.config.get(option)
        is_none = dtype is None or (dtype == "none" and option != "quantized_matmul_dtype")
        if not is_none and weight_format(str(dtype)) is None:
            problems.append(f"{option} {shown(dtype)} is not a dtype of SDNQ")
    return list_problems("config", problems, f"{shown(audit.class_name)}, {shown(audit.config.get('weights_dtype'))}")


def _check_quantized(audit: Audit) -> Check:
    """Whether no module is quantized that the configuration excludes."""
    problems = [] if audit.modules else ["no tensor is quantized: none has a scale"]
    for name in audit.modules:
        pattern = audit.excluding_pattern(f"{name}.weight")
        if pattern is not None:
            problems.append(f"{name} is quantized, but modules_to_not_convert contains {pattern}")
    good = f"{len(audit.modules)} modules, none of them excluded by the config"
    return list_problems("quantized", problems, good)


def _check_kept(audit: Audit) -> Check:
    """Whether tensors outside of quantized modules are plain numbers; codes without a scale cannot be used."""
    is_lens = audit.class_name == CLASS_NAME
    problems = []
    for name, entry in audit.kept.items():
        is_code = entry.dtype.startswith(("F4", "F6", "F8")) or (
            name.endswith(".weight") and entry.dtype in ("U8", "I8", "U16", "I16")
        )
        # All numbers of Lens are floats; other classes have buffers of integers.
        if is_code or (is_lens and entry.dtype not in WEIGHT_DTYPES):
            problems.append(f"{name} is {entry.dtype}, but {'has no scale' if is_code else 'should be a float'}")
    dtypes = Counter(entry.dtype for entry in audit.kept.values())
    listed = ", ".join(f"{count} in {dtype}" for dtype, count in dtypes.most_common()) or "none"
    return list_problems("kept tensors", problems, listed)


def _check_modulation(audit: Audit) -> Check:
    """Whether modulation layers exist, and those that the config excludes are floats."""
    quantized: dict[str, str] = {}
    dtypes: Counter[str] = Counter()
    for name, tensor in audit.checkpoint.tensors.items():
        if lens_family(name) not in ("img_mod", "txt_mod"):
            continue
        dtypes[tensor.entry.dtype] += 1
        is_plain = name in audit.kept and tensor.entry.dtype in WEIGHT_DTYPES
        module, _, part = name.rpartition(".")
        if not is_plain and audit.excluding_pattern(f"{module}.weight") is not None:
            dtype = tensor.entry.dtype
            quantized[module] = dtype if part == "weight" else quantized.get(module, dtype)
    problems = [f"{module} is quantized ({dtype}), which ruins images" for module, dtype in quantized.items()]
    if not dtypes:
        problems.append("the model has no modulation layers")
    listed = ", ".join(f"{count} tensors in {dtype}" for dtype, count in dtypes.most_common())
    return list_problems("modulation", problems, listed)


def _check_lens_names(audit: Audit) -> Check:
    """Compare the tensors with those of the class, in both directions."""
    expected, shapes = audit.lens_shapes, audit.checkpoint.shapes
    problems = []
    for name, shape in expected.items():
        if name.endswith(".weight") and name.removesuffix(".weight") in audit.modules:
            continue
        if name not in shapes:
            problems.append(f"{name} is missing")
        elif shapes[name] != shape:
            problems.append(f"{name} has shape {list(shapes[name])}, should have {list(shape)}")
        elif len(shape) == 2 and audit.excluding_pattern(name) is None:
            problems.append(f"{name} is not quantized, and the config does not exclude it")
    problems += [
        f"{name} is not part of {CLASS_NAME}" for name in shapes if name not in expected and name not in audit.owners
    ]
    problems += [
        f"{name} is not a module of {CLASS_NAME}" for name in audit.modules if f"{name}.weight" not in expected
    ]
    return list_problems("names", problems, f"all {len(expected)} tensors of {CLASS_NAME} exist, and no others")
