"""Where an original runs: in this process, or in processes on nodes. What is measured does not depend on that.

An original is loaded once. Everything that is measured with it is one call of a ``PlacedOriginal``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from PIL.Image import Image

from converter.checkpoint.writer import writing
from converter.cluster.sharing import Work
from converter.console import Progress, Reporter
from converter.measurement.benchmark.repos import ImageSettings
from converter.measurement.sensitivity.calibration import CalibrationFile, write_calibration
from converter.measurement.sensitivity.call_files import read_calls, write_calls
from converter.measurement.sensitivity.calls import Call, record_calls
from converter.measurement.sensitivity.gradients import Gradients
from converter.measurement.sensitivity.inputs import gather_inputs, harms_by_inputs
from converter.measurement.sensitivity.loaded import LoadedOriginal
from converter.measurement.sensitivity.measured import mean_square, measure_variant
from converter.measurement.sensitivity.storage import Storage
from converter.measurement.sensitivity.swapping import Swapping
from converter.measurement.sensitivity.work_folder import WorkFolder

Item = TypeVar("Item")


@dataclass(frozen=True)
class StoredModel:
    """A way of storing the denoiser, or a part of it."""

    storages: Mapping[str, Storage]
    """How tensors are stored, by their names in the source; all others are as in the original."""
    quantization: Mapping[str, Any]
    """The ``quantization_config`` of the plan that the storages are from."""


@dataclass(frozen=True)
class GradientOptions:
    """How harms by gradients are estimated; the arguments of ``Gradients``."""

    storages: Sequence[Storage]
    probes: int
    checkpointing: bool


class PlacedOriginal(Protocol):
    """A loaded original somewhere; one thread uses it at a time."""

    def device(self) -> str:
        """Type of the device where it runs."""

    def record(self, prompts: Mapping[str, ImageSettings], count: int) -> str:
        """Record calls of the denoiser into the file of the work folder; see ``record_calls``.

        Returns:
            sha256 of the file.
        """

    def velocity(self, stored: StoredModel, prompt: str) -> list[float]:
        """The velocity error in each recorded call of a prompt; see ``measure_variant``."""

    def draw(self, settings: ImageSettings, stored: StoredModel | None) -> Image:
        """Draw an image, with the original's weights if ``stored`` is None; see ``LoadedOriginal.draw``."""

    def calibrate(self, paths: Sequence[str], file: Path, memory: int) -> CalibrationFile:
        """Write the second moments of the inputs of modules; see ``gather_inputs`` and ``write_calibration``."""

    def harm(self, stored: StoredModel) -> float:
        """The mean over all recorded calls of the squared velocity error; see ``measure_harms``."""

    def harms_by_inputs(self, storages: Sequence[Storage]) -> dict[tuple[str, str], float]:
        """The squared error of each module's output; see ``harms_by_inputs``."""

    def harms_by_gradients(self, number: int, options: GradientOptions) -> dict[tuple[str, str], float]:
        """Harms in one recorded call; see ``estimate_harms``."""


class Originals(Protocol):
    """The places where an original runs; a context manager that frees them."""

    def run(self, work: Work[Item], function: Callable[[PlacedOriginal, Item], object], shown: Progress) -> None:
        """Call a function with every item, in one thread for each place.

        Args:
            work: the items.
            function: gets a place, and an item. It is called again for an item if the place was lost.
            shown: refreshed after each item, or more often.

        Raises: what the function raises.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class OriginalHere:
    """An original in this process.

    Args:
        loaded: nothing else exchanges its modules.
        work: has the recorded calls, and the parts of all weights that are put in place.
        reporter: shows the progress of a calibration.
    """

    def __init__(self, loaded: LoadedOriginal, work: WorkFolder, reporter: Reporter) -> None:
        self._loaded = loaded
        self._work = work
        self._reporter = reporter
        self._recorded: list[Call] | None = None
        self._gradients: tuple[GradientOptions, Gradients] | None = None

    def device(self) -> str:
        """As ``PlacedOriginal``."""
        return str(self._loaded.device.type)

    def record(self, prompts: Mapping[str, ImageSettings], count: int) -> str:
        """As ``PlacedOriginal``."""
        self._swapping.restore()
        self._recorded = record_calls(self._loaded, prompts, count)
        with writing(self._work.path):
            self._work.path.mkdir(parents=True, exist_ok=True)
        return write_calls(self._recorded, self._work.calls)

    def velocity(self, stored: StoredModel, prompt: str) -> list[float]:
        """As ``PlacedOriginal``."""
        calls = [call for call in self._calls if call.prompt == prompt]
        found = measure_variant(self._loaded, self._swapping, calls, stored.storages, stored.quantization)
        return [difference.relative for difference in found]

    def draw(self, settings: ImageSettings, stored: StoredModel | None) -> Image:
        """As ``PlacedOriginal``."""
        if stored is None:
            self._swapping.restore()
        else:
            self._swapping.use(stored.storages, stored.quantization)
        return self._loaded.draw(settings)

    def calibrate(self, paths: Sequence[str], file: Path, memory: int) -> CalibrationFile:
        """As ``PlacedOriginal``."""
        self._swapping.restore()
        gathered = gather_inputs(self._loaded, paths, self._calls)
        return write_calibration(self._loaded, gathered, self._calls, file, memory=memory, reporter=self._reporter)

    def harm(self, stored: StoredModel) -> float:
        """As ``PlacedOriginal``."""
        return mean_square(
            measure_variant(self._loaded, self._swapping, self._calls, stored.storages, stored.quantization)
        )

    def harms_by_inputs(self, storages: Sequence[Storage]) -> dict[tuple[str, str], float]:
        """As ``PlacedOriginal``."""
        self._swapping.restore()
        return harms_by_inputs(self._loaded, self._calls, storages, self._work.tensors)

    def harms_by_gradients(self, number: int, options: GradientOptions) -> dict[tuple[str, str], float]:
        """As ``PlacedOriginal``."""
        self._swapping.restore()
        if self._gradients is None or self._gradients[0] != options:
            made = Gradients(
                self._loaded,
                options.storages,
                self._work.tensors,
                probes=options.probes,
                checkpointing=options.checkpointing,
            )
            self._gradients = options, made
        return self._gradients[1].harms(self._calls[number], number)

    @property
    def _calls(self) -> list[Call]:
        if self._recorded is None:
            self._recorded = read_calls(self._work.calls)
        return self._recorded

    @cached_property
    def _swapping(self) -> Swapping:
        return Swapping(self._loaded, self._work.tensors)


class OriginalsHere:
    """The one place of an original that runs in this process; arguments as for ``OriginalHere``."""

    def __init__(self, loaded: LoadedOriginal, work: WorkFolder, reporter: Reporter) -> None:
        self._place: OriginalHere | None = OriginalHere(loaded, work, reporter)

    def run(self, work: Work[Item], function: Callable[[PlacedOriginal, Item], object], shown: Progress) -> None:
        """As ``Originals``."""
        if self._place is None:
            raise ValueError("the original is not loaded any more")
        group: str | None = None
        while (taken := work.take(group)) is not None:
            group, item = taken
            function(self._place, item)
            shown.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Its memory is needed by what comes next.
        self._place = None
