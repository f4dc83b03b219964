"""A folder that stands for a repo on the Hub: every file at its size, none with more content than a check needs.

Small JSON files are there whole, weight files with their headers, everything else is a hole. What examines folders
examines this one, and what it says is put right by ``Shadow.named``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from converter.checkpoint.header import PREFIX_BYTES, header_length
from converter.checkpoint.source import (
    DENOISERS,
    INDEX_SUFFIX,
    PICKLE_SUFFIXES,
    PIPELINE_INDEX,
    WEIGHT_STEMS,
    WEIGHTS_SUFFIX,
    pipeline_components,
    read_json,
)
from converter.errors import HubError, InputError, LensconvError, UnsupportedCheckpoint, printable
from converter.hub.client import quiet_hub
from converter.hub.places import HubPlace
from converter.hub.remote import RemoteRepo
from converter.threads import run_in_threads

#: Files that a check reads whole: of the repo, and of a component.
ROOT_NAMES = (PIPELINE_INDEX, "lensconv_manifest.json")
COMPONENT_NAMES = ("config.json", "quantization_config.json")
#: Bytes of one of them. Indexes of the largest models have ten million.
MAXIMUM_SMALL_BYTES = 16_000_000
#: Bytes that are read of all weight files together before the lengths of their headers are known: the header of Lens
#: takes 145,360 bytes as the source and 258,216 as uint4, and a second request costs more than some bytes too many.
FIRST_BYTES = 320 * 1024
#: The same of one file, where there are many.
LEAST_FIRST_BYTES = 32 * 1024
#: Requests at a time.
CONNECTIONS = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Shadow:
    """A repo and the folder that stands for it."""

    repo: RemoteRepo
    folder: Path
    contents: dict[str, bytes] = field(default_factory=dict)
    """Files that were read whole, by path."""

    def named(self, text: str) -> str:
        """A message in which the address stands where the folder would."""
        for name in (str(self.folder), printable(str(self.folder))):
            text = text.replace(name, str(self.repo.place))
        return text

    def fetch(self, paths: Sequence[str]) -> None:
        """Read files whole, at once.

        Raises:
            HubError: one of them is too long, or cannot be read.
        """
        files = self.repo.files
        for path in paths:
            if files[path].bytes > MAXIMUM_SMALL_BYTES:
                raise HubError(f"{self.repo.where(path)}: has {files[path].bytes} bytes; no such file is that long")
        missing = [path for path in paths if path not in self.contents]
        for path, content in zip(missing, self.at_once(self.repo.read, missing), strict=True):
            self.contents[path] = content
            (self.folder / path).write_bytes(content)

    def at_once(self, function: Callable[[str], T], paths: Sequence[str]) -> list[T]:
        """Call a function that reads files, over several connections."""
        stopping = self.repo.stopping
        try:
            return run_in_threads(
                function, paths, workers=CONNECTIONS, name="hub", refresh=lambda: None, stop=stopping.set
            )
        finally:
            stopping.clear()


@contextmanager
def shadowed(place: HubPlace, component: str | None = None) -> Iterator[Shadow]:
    """Open a repo as a temporary folder, which is gone afterwards.

    Args:
        place: the repo.
        component: which component of a pipeline repo; its denoiser by default.

    Raises:
        HubError: the repo cannot be read, or holds what no repo should.
        InputError: a file of it is malformed; whatever the block raises names the address too.
    """
    with quiet_hub():
        repo = RemoteRepo.open(place)
    with tempfile.TemporaryDirectory(prefix="lensconv-") as name:
        shadow = Shadow(repo, Path(name))
        try:
            with quiet_hub():
                fill(shadow, component)
            yield shadow
        except LensconvError as error:
            error.message, error.hint = shadow.named(error.message), shadow.named(error.hint)
            error.args = (error.message,)
            raise


def fill(shadow: Shadow, component: str | None = None) -> None:
    """Put a repo's files into its folder, with as much content as the checks of a component need.

    Raises:
        HubError: a file cannot be read, or is not what the Hub says.
        MalformedCheckpoint: a weight file is none.
        UnsupportedCheckpoint: there are no safetensors weights.
    """
    files = shadow.repo.files
    for file in files.values():
        _make_hole(shadow.folder / file.path, file.bytes)
    shadow.fetch([path for path in ROOT_NAMES if path in files])
    prefix = _component_prefix(shadow, component)
    if prefix is None:
        # Why there is none, whoever opens the folder will say.
        return
    names = [path.removeprefix(prefix) for path in files if path.startswith(prefix)]
    names = [name for name in names if "/" not in name]
    _check_formats(shadow, prefix, names)
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    shadow.fetch([prefix + name for name in names if name in COMPONENT_NAMES or name in indexes])
    weights = [prefix + name for name in _weight_names(shadow.folder / prefix, names)]
    first = max(LEAST_FIRST_BYTES, FIRST_BYTES // max(len(weights), 1))
    shadow.at_once(lambda path: _write_header(shadow, path, first), weights)


def _make_hole(file: Path, size: int) -> None:
    """Make a file of a size that takes no space."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("xb") as stream:
        stream.truncate(size)
        # As everybody can read what lies on the Hub.
        os.fchmod(stream.fileno(), 0o644)


def _component_prefix(shadow: Shadow, component: str | None) -> str | None:
    """What precedes the component's files in the repo, with the slash; None when there is no such component."""
    if PIPELINE_INDEX not in shadow.repo.files:
        return "" if component is None else None
    try:
        components = pipeline_components(shadow.folder)
    except InputError:
        return None
    if component is None:
        component = next((name for name in DENOISERS if name in components), None)
    return f"{component}/" if component in components else None


def _check_formats(shadow: Shadow, prefix: str, names: Sequence[str]) -> None:
    """Say what a repo without safetensors holds instead."""
    if any(name.endswith(WEIGHTS_SUFFIX) for name in names):
        return
    where = f"{shadow.repo.place}/{prefix}".rstrip("/")
    if any(name.endswith(PICKLE_SUFFIXES) for name in names):
        # Examining the folder says so, and why that is refused.
        return
    if any(name.endswith(".gguf") for name in names):
        raise UnsupportedCheckpoint(f"{where}: holds GGUF; lensconv reads safetensors", "Look for the repo it is from.")


def _weight_names(folder: Path, names: Sequence[str]) -> list[str]:
    """The weight files whose headers will be read, as ``examine_checkpoint`` finds them."""
    present = [name for name in names if name.endswith(WEIGHTS_SUFFIX)]
    stems = [stem for stem in WEIGHT_STEMS if stem + INDEX_SUFFIX in names or stem + WEIGHTS_SUFFIX in present]
    if not stems:
        stems = [name.removesuffix(WEIGHTS_SUFFIX) for name in present] if len(present) == 1 else []
    if not stems:
        return []
    if stems[0] + INDEX_SUFFIX not in names:
        return [stems[0] + WEIGHTS_SUFFIX]
    try:
        weight_map = read_json(folder / (stems[0] + INDEX_SUFFIX)).get("weight_map")
    except InputError:
        return []
    named = {name for name in weight_map.values() if isinstance(name, str)} if isinstance(weight_map, dict) else set()
    return [name for name in present if name in named]


def _write_header(shadow: Shadow, path: str, first: int) -> None:
    """Put a weight file's header where it belongs; what came with it is left out."""
    file, size = shadow.folder / path, shadow.repo.files[path].bytes
    content = shadow.repo.read(path, 0, first)
    end = PREFIX_BYTES + header_length(content[:PREFIX_BYTES], size, file)
    if end > len(content):
        content += shadow.repo.read(path, len(content), end)
    with file.open("r+b") as stream:
        stream.write(content[:end])
