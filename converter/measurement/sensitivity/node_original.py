"""An original on nodes of a cluster: loaded there once, with quantized tensors that each node makes itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from PIL.Image import Image

from converter.checkpoint.writer import replace_file_in_pieces, writing
from converter.cluster.hosted import Hosted
from converter.cluster.sharing import Crew, Work
from converter.console import Progress, Reporter
from converter.conversion.options import ConvertOptions
from converter.measurement.benchmark.node_places import Nodes
from converter.measurement.benchmark.node_repos import NodeRepos
from converter.measurement.benchmark.repos import ImageSettings
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.sensitivity.calibration import CalibrationFile
from converter.measurement.sensitivity.figures import StorageFigures
from converter.measurement.sensitivity.loaded import load_original, open_original
from converter.measurement.sensitivity.placed import GradientOptions, OriginalHere, PlacedOriginal, StoredModel
from converter.measurement.sensitivity.scan import scan
from converter.measurement.sensitivity.storage import Storage
from converter.measurement.sensitivity.work_folder import WorkFolder
from converter.temporary import temporary_folder

Item = TypeVar("Item")
#: File of a node's folder.
_CALIBRATION = "calibration.safetensors"
#: Bytes of a file that travel at a time.
_PIECE_BYTES = 16 << 20
#: Pieces that may wait to be written.
_PIECES = 2


class NodeOriginal:
    """A loaded original in a process of a node.

    Its methods are those of ``PlacedOriginal``, with files in a temporary folder.

    Args:
        repos: the original alone.
        settings: of all images that will be drawn.
        drawing: how they are drawn.
        conversion: how numbers are treated when they are quantized.

    Raises: as ``NodeRepos.here``, ``open_original`` and ``load_original``.
    """

    def __init__(
        self,
        repos: NodeRepos,
        settings: Sequence[ImageSettings],
        drawing: GenerateOptions,
        conversion: ConvertOptions,
    ) -> None:
        (found,) = repos.here()
        repo = open_original(Path(found.folder))
        self._notes = _Notes()
        self._conversion = conversion
        self._figures: dict[tuple[str, str], StorageFigures] = {}
        self._loaded = load_original(repo, settings, drawing, reporter=self._notes)
        with ExitStack() as stack:
            self._work = WorkFolder(stack.enter_context(temporary_folder()))
            self._original = OriginalHere(self._loaded, self._work, self._notes)
            self._files = stack.pop_all()

    def notes(self) -> list[str]:
        """What the user should know; nothing the next time."""
        found, self._notes.texts = self._notes.texts, []
        return found

    def device(self) -> str:
        """As ``PlacedOriginal``."""
        return self._original.device()

    def record(self, prompts: Mapping[str, ImageSettings], count: int) -> str:
        """As ``PlacedOriginal``."""
        return self._original.record(prompts, count)

    def read(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file of the folder."""
        with (self._work.path / name).open("rb") as stream:
            while piece := stream.read(_PIECE_BYTES):
                yield piece

    def add_calls(self, piece: bytes) -> None:
        """Add a piece to the file of recorded calls."""
        with writing(self._work.calls), self._work.calls.open("ab") as stream:
            stream.write(piece)

    def velocity(self, stored: StoredModel, prompt: str) -> list[float]:
        """As ``PlacedOriginal``."""
        self._quantize(stored.storages.values())
        return self._original.velocity(stored, prompt)

    def draw(self, settings: ImageSettings, stored: StoredModel | None) -> Image:
        """As ``PlacedOriginal``."""
        if stored is not None:
            self._quantize(stored.storages.values())
        return self._original.draw(settings, stored)

    def calibrate(self, paths: Sequence[str], name: str, memory: int) -> CalibrationFile:
        """As ``PlacedOriginal``, into a file of the folder."""
        return self._original.calibrate(paths, self._work.path / name, memory)

    def harm(self, stored: StoredModel) -> float:
        """As ``PlacedOriginal``."""
        self._quantize(stored.storages.values())
        return self._original.harm(stored)

    def harms_by_inputs(self, storages: Sequence[Storage]) -> dict[tuple[str, str], float]:
        """As ``PlacedOriginal``."""
        self._quantize(storages)
        return self._original.harms_by_inputs(storages)

    def harms_by_gradients(self, number: int, options: GradientOptions) -> dict[tuple[str, str], float]:
        """As ``PlacedOriginal``."""
        self._quantize(options.storages)
        return self._original.harms_by_gradients(number, options)

    def close(self) -> None:
        """Remove the folder."""
        self._files.close()

    def _quantize(self, storages: Iterable[Storage]) -> None:
        """Quantize weights that were not needed before."""
        wanted: dict[str, list[Storage]] = {}
        for storage in storages:
            if storage.quantized is not None and (storage.source, storage.key) not in self._figures:
                wanted.setdefault(storage.source, []).append(storage)
        if wanted:
            self._figures |= scan(self._loaded.checkpoint, wanted, self._conversion, spool=self._work.tensors)


class _Notes(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """Keep a note."""
        self.texts.append(text)


class OriginalOnNode:
    """A ``NodeOriginal``, as the process of the command sees it.

    Args:
        hosted: where it is.
        calls: file of the recorded calls on this machine.
        note: is told what the user should know.
    """

    def __init__(self, hosted: Hosted, calls: Path, note: Callable[[str], object]) -> None:
        self._hosted = hosted
        self._calls = calls
        self._note = note
        self._device = ""
        self._has_calls = False

    def device(self) -> str:
        """As ``PlacedOriginal``."""
        if not self._device:
            self._device = self._call("device")
        return self._device

    def record(self, prompts: Mapping[str, ImageSettings], count: int) -> str:
        """As ``PlacedOriginal``."""
        digest: str = self._call("record", prompts, count)
        with writing(self._calls.parent):
            self._calls.parent.mkdir(parents=True, exist_ok=True)
        self._fetch(self._calls.name, self._calls)
        self._has_calls = True
        return digest

    def velocity(self, stored: StoredModel, prompt: str) -> list[float]:
        """As ``PlacedOriginal``."""
        found: list[float] = self._call_with_calls("velocity", stored, prompt)
        return found

    def draw(self, settings: ImageSettings, stored: StoredModel | None) -> Image:
        """As ``PlacedOriginal``."""
        image: Image = self._call("draw", settings, stored)
        return image

    def calibrate(self, paths: Sequence[str], file: Path, memory: int) -> CalibrationFile:
        """As ``PlacedOriginal``."""
        found: CalibrationFile = self._call_with_calls("calibrate", paths, _CALIBRATION, memory)
        self._fetch(_CALIBRATION, file)
        return replace(found, file=file)

    def harm(self, stored: StoredModel) -> float:
        """As ``PlacedOriginal``."""
        found: float = self._call_with_calls("harm", stored)
        return found

    def harms_by_inputs(self, storages: Sequence[Storage]) -> dict[tuple[str, str], float]:
        """As ``PlacedOriginal``."""
        found: dict[tuple[str, str], float] = self._call_with_calls("harms_by_inputs", storages)
        return found

    def harms_by_gradients(self, number: int, options: GradientOptions) -> dict[tuple[str, str], float]:
        """As ``PlacedOriginal``."""
        found: dict[tuple[str, str], float] = self._call_with_calls("harms_by_gradients", number, options)
        return found

    def _call(self, method: str, *arguments: Any) -> Any:
        found = self._hosted.call(method, *arguments)
        for text in self._hosted.call("notes"):
            self._note(text)
        return found

    def _call_with_calls(self, method: str, *arguments: Any) -> Any:
        """Call a method that repeats the recorded calls, which the node may not have yet."""
        if not self._has_calls:
            with self._calls.open("rb") as stream:
                while piece := stream.read(_PIECE_BYTES):
                    self._hosted.call("add_calls", piece)
            self._has_calls = True
        return self._call(method, *arguments)

    def _fetch(self, name: str, file: Path) -> None:
        """Copy a file of the node, whole or not at all."""
        replace_file_in_pieces(file, self._hosted.stream("read", name, most=_PIECES))


class OriginalsOnNodes:
    """An original in as many processes of a cluster as it has GPUs; on CPUs, in one on each node.

    Args:
        nodes: with the original alone as their repos.
        settings: of all images that will be drawn.
        drawing: how they are drawn.
        conversion: how numbers are treated when they are quantized.
        work: for the recorded calls, on this machine.
        reporter: is told what the user should know.
    """

    def __init__(
        self,
        nodes: Nodes,
        settings: Sequence[ImageSettings],
        drawing: GenerateOptions,
        conversion: ConvertOptions,
        work: WorkFolder,
        reporter: Reporter,
    ) -> None:
        told = set[str]()

        def note(text: str) -> None:
            if text not in told:
                told.add(text)
                reporter.note(text)

        self._crew = Crew[PlacedOriginal](
            nodes.cluster,
            nodes.slot,
            nodes.slots,
            NodeOriginal,
            (nodes.repos, tuple(settings), replace(drawing, device=nodes.device, features=None), conversion),
            lambda hosted: OriginalOnNode(hosted, work.calls, note),
        )

    def run(self, work: Work[Item], function: Callable[[PlacedOriginal, Item], object], shown: Progress) -> None:
        """As ``Originals``.

        Raises also what ``Crew.run`` raises.
        """
        self._crew.run(work, function, shown)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After an error, the cluster ends the processes and removes their folders.
        if error is None:
            self._crew.close("close")
