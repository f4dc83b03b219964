"""What an ablation gathers for calibrated rounding, since it has recorded the calls of the denoiser in any case."""

from __future__ import annotations

from collections.abc import Sequence

from converter.console import Reporter
from converter.conversion.execution.work import DEFAULT_BUDGET
from converter.errors import first_few
from converter.measurement.ablation.contents import MeasuredVariant
from converter.measurement.ablation.options import AblateOptions
from converter.measurement.sensitivity.calibration import write_calibration
from converter.measurement.sensitivity.calls import Call
from converter.measurement.sensitivity.inputs import gather_inputs
from converter.measurement.sensitivity.loaded import LoadedOriginal


def gather_calibration(
    loaded: LoadedOriginal,
    calls: Sequence[Call],
    measured: Sequence[MeasuredVariant],
    options: AblateOptions,
    reporter: Reporter,
) -> None:
    """Write the second moments of the inputs of every module that a variant quantizes.

    Args:
        loaded: the original, unchanged.
        calls: recorded ones.
        measured: the variants.
        options: name the file, and the memory for sums.
        reporter: is told what the file has.

    Raises: as ``gather_inputs`` and ``write_calibration``.
    """
    file = options.calibration
    if file is None:
        return
    paths = {module.name for one in measured for module in one.variant.plan.modules.values()}
    gathered = gather_inputs(loaded, sorted(paths), calls)
    memory = options.memory or DEFAULT_BUDGET
    written = write_calibration(loaded, gathered, calls, file, memory=memory, reporter=reporter)
    absent = f"; not those of {first_few(written.absent)}, which were not called or are not linear"
    count = len(paths) - len(written.absent)
    reporter.note(f"{file}: inputs of {count} modules in {len(calls)} calls{absent if written.absent else ''}")
