"""The LoRA adapters that were added to a source before it was quantized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from converter.checkpoint.header import Header
from converter.checkpoint.source import Checkpoint
from converter.conversion.adapters.additions import Addition
from converter.conversion.adapters.choice import AdapterChoice
from converter.conversion.adapters.described import ManifestAdapter
from converter.conversion.adapters.file import open_adapter
from converter.verification.audit import Audit
from converter.verification.copied import is_quantized
from converter.verification.report import Check, list_problems

#: What is added to the tensors of each component, by its name in the source.
Additions = Mapping[str, Mapping[str, Addition]]


def fit(
    choices: Sequence[AdapterChoice], audits: Sequence[Audit], sources: Sequence[Checkpoint]
) -> tuple[Additions, list[Check]]:
    """Find out what adapters add to sources, and compare the adapters with those that the manifest names.

    Args:
        choices: the adapters, in their order.
        audits: of the components that are compared.
        sources: what each was made from.

    Raises: what ``open_adapter`` and ``fit_adapters`` raise.
    """
    originals = [source for source in sources if not is_quantized(source)]
    if not (choices and originals):
        return {}, []
    # Imported here: it imports torch.
    from converter.conversion.adapters.fitting import fit_adapters

    fitted = fit_adapters([open_adapter(choice) for choice in choices], originals)
    problems: list[str] = []
    for audit, source in zip(audits, sources, strict=True):
        if source in originals:
            problems += differing_adapters(audit, fitted.describe(source.component))
    good = f"{len(choices)} added to the source before it is compared"
    return {source.component: fitted.additions(source.component) for source in originals}, [
        list_problems("adapters", problems, good)
    ]


def differing_adapters(audit: Audit, given: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say that the manifest names other adapters for a component, or another order; nothing without a manifest.

    Args:
        audit: of the component.
        given: the adapters, as manifests describe them.
    """
    if audit.described is None:
        return
    listed = [adapter.identity for adapter in audit.described.adapters]
    if listed != [ManifestAdapter(**adapter).identity for adapter in given]:
        named = ", ".join(_names(audit)) or "none"
        yield f"the manifest names other adapters for {audit.name or 'the component'}: {named}"


def is_made_from(audit: Audit, headers: Iterable[Header]) -> bool:
    """Whether weight files can be those that a component was made from, by their headers.

    Headers tell names, shapes and dtypes. A copy with adapters merged into its weights can have the same.

    Args:
        audit: of the component.
        headers: of the files.
    """
    listed = [file.get("header_sha256") for file in audit.described.source["files"]] if audit.described else []
    return sorted(map(str, listed)) == sorted(header.sha256 for header in headers)


def _names(audit: Audit) -> Iterator[str]:
    return (adapter.title for adapter in (audit.described.adapters if audit.described is not None else ()))


def missing_adapters(audits: Sequence[Audit], original: str = "the source") -> Iterator[str]:
    """What to know where sources are compared without the adapters that were added to them.

    Args:
        audits: of the components that are compared.
        original: what to call that with which they are compared.
    """
    for audit in audits:
        names = ", ".join(_names(audit))
        if names:
            where = f"{audit.name}: " if len(audits) > 1 else ""
            yield (
                f"{where}by the manifest, LoRA was added before quantization: {names}; unless {original} contains it, "
                "name the files in the same order with --lora FILE=SCALE"
            )
