"""What an ablation gathers for calibrated rounding, since it has recorded the calls of the denoiser in any case."""

from __future__ import annotations

from collections.abc import Sequence

from converter.cluster.sharing import Work
from converter.console import Progress, Reporter
from converter.conversion.execution.work import DEFAULT_BUDGET
from converter.errors import first_few
from converter.measurement.ablation.contents import MeasuredVariant
from converter.measurement.ablation.options import AblateOptions
from converter.measurement.sensitivity.calibration import CalibrationFile
from converter.measurement.sensitivity.placed import Originals


def gather_calibration(
    originals: Originals,
    calls: int,
    measured: Sequence[MeasuredVariant],
    options: AblateOptions,
    reporter: Reporter,
) -> None:
    """Write the second moments of the inputs of every module that a variant quantizes.

    Args:
        originals: where the original runs; its calls are recorded.
        calls: how many.
        measured: the variants.
        options: name the file, and the memory for sums.
        reporter: is told what the file has.

    Raises: as ``gather_inputs`` and ``write_calibration``.
    """
    file = options.calibration
    if file is None:
        return
    paths = sorted({module.name for one in measured for module in one.variant.plan.modules.values()})
    memory = options.memory or DEFAULT_BUDGET
    written = list[CalibrationFile]()
    originals.run(
        Work({"": [file]}), lambda original, place: written.append(original.calibrate(paths, place, memory)), Progress()
    )
    missing = written[-1].absent
    absent = f"; not those of {first_few(missing)}, which were not called or are not linear"
    count = len(paths) - len(missing)
    reporter.note(f"{file}: inputs of {count} modules in {calls} calls{absent if missing else ''}")
