"""The LoRA adapters that were added to a source before it was quantized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from converter.checkpoint.source import Checkpoint
from converter.conversion.adapters.additions import Addition
from converter.conversion.adapters.choice import AdapterChoice
from converter.conversion.adapters.file import open_adapter
from converter.errors import printable
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
        if audit.described is not None and source in originals:
            listed = [(adapter.sha256, adapter.scale) for adapter in audit.described.adapters]
            given = [(adapter["sha256"], adapter["scale"]) for adapter in fitted.describe(source.component)]
            if listed != given:
                named = ", ".join(_names(audit)) or "none"
                problems.append(f"the manifest names other adapters for {audit.name or 'the component'}: {named}")
    good = f"{len(choices)} added to the source before it is compared"
    return {source.component: fitted.additions(source.component) for source in originals}, [
        list_problems("adapters", problems, good)
    ]


def _names(audit: Audit) -> Iterator[str]:
    for adapter in audit.described.adapters if audit.described is not None else ():
        yield f"{printable(adapter.name)} with scale {adapter.shown_scale}"


def missing_adapters(audits: Sequence[Audit]) -> Iterator[str]:
    """What to know where sources are compared without the adapters that were added to them."""
    for audit in audits:
        names = ", ".join(_names(audit))
        if names:
            where = f"{audit.name}: " if len(audits) > 1 else ""
            yield (
                f"{where}by the manifest, LoRA was added before quantization: {names}; unless the source contains it, "
                "name the files in the same order with --lora FILE=SCALE"
            )
