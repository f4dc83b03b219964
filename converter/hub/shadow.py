"""A temporary folder in place of a repo on the Hub: all files have their sizes, but only the content that checks need.

Small JSON files are complete, weight files have their headers, all other files are sparse. The functions that examine
folders examine this one; ``Shadow.named`` replaces the folder in their messages by the address.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from converter.checkpoint.components import component_folders
from converter.checkpoint.header import PREFIX_BYTES, header_length
from converter.checkpoint.source import DENOISERS, PIPELINE_INDEX, pipeline_components, weight_files
from converter.checkpoint.weights import INDEX_SUFFIX, is_weight_name, plain_name, variant_of
from converter.errors import HubError, InputError, LensconvError, printable
from converter.hub.addresses import HubAddress
from converter.hub.client import quiet_hub
from converter.hub.recorded_sum import RecordedSum
from converter.hub.records import RemoteFile
from converter.hub.remote import RemoteRepo
from converter.temporary import temporary_folder
from converter.threads import run_in_threads

#: Files that checks read whole: of the repo, and of a component.
ROOT_NAMES = (PIPELINE_INDEX, "lensconv_manifest.json")
COMPONENT_NAMES = ("config.json", "quantization_config.json")
#: Most bytes of one of them. Indexes of the largest models have ten million.
MAXIMUM_SMALL_BYTES = 16_000_000
#: Bytes that are read of all weight files together before the lengths of their headers are known. The header of Lens
#: has 145,360 bytes in the source and 258,216 in uint4, and a second request takes longer than some needless bytes.
FIRST_BYTES = 320 * 1024
#: Least number of these bytes for one file, where there are many.
LEAST_FIRST_BYTES = 32 * 1024
#: Requests at a time.
CONNECTIONS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")
#: Chooses components in the folder of a repo; None stands for its denoiser, or for the folder itself.
Choose = Callable[[Path], Sequence[str | None]]


@dataclass(frozen=True)
class Shadow:
    """A repo and the temporary folder in its place."""

    repo: RemoteRepo
    folder: Path
    contents: dict[str, bytes] = field(default_factory=dict)
    """Files that were read whole, by path."""

    def named(self, text: str) -> str:
        """A message with the address in place of the folder."""
        return _named(text, self.folder, self.repo.address)

    def path_of(self, file: Path) -> str:
        """The path in the repo of a file in the folder."""
        return file.relative_to(self.folder).as_posix()

    def record_of(self, file: Path) -> RemoteFile:
        """The Hub's record of a file in the folder."""
        return self.repo.files[self.path_of(file)]

    def fetch(self, paths: Sequence[str]) -> None:
        """Read whole files, several at a time.

        Raises:
            HubError: one of them is too long, or cannot be read.
        """
        files = self.repo.files
        for path in paths:
            if files[path].bytes > MAXIMUM_SMALL_BYTES:
                reason = f"has {files[path].bytes} bytes; lensconv reads files of this kind up to {MAXIMUM_SMALL_BYTES}"
                raise HubError(f"{self.repo.where(path)}: {reason}", "Compare the file with the original.")
        missing = [path for path in paths if path not in self.contents]
        for path, content in zip(missing, self.at_once(self.repo.read, missing), strict=True):
            self.contents[path] = content
            (self.folder / path).write_bytes(content)

    def check_contents(self) -> None:
        """Compare the files that were read whole with the Hub's records.

        Raises:
            CorruptDownload: one has other bytes.
        """
        for path, content in self.contents.items():
            checksum = RecordedSum(self.repo.files[path])
            checksum.update(memoryview(bytearray(content)))
            checksum.check(self.repo.where(path))

    def at_once(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        connections: int = CONNECTIONS,
        refresh: Callable[[], None] = lambda: None,
    ) -> list[Result]:
        """Call a function that reads a file, over several connections.

        Args:
            function: reads one.
            items: one for each call.
            connections: most files at a time.
            refresh: called a few times a second.
        """
        try:
            return run_in_threads(
                function, items, workers=connections, name="hub", refresh=refresh, stop=self.repo.halt
            )
        finally:
            self.repo.stopping.clear()


@contextmanager
def shadowed(
    address: HubAddress, choose: Choose, variant: str | None = None, *, has_others: bool = True
) -> Iterator[Shadow]:
    """Open a repo as a temporary folder, which is deleted afterwards.

    Args:
        address: the repo.
        choose: chooses the components that are examined.
        variant: the variant of the weights to prefer to the plain files.
        has_others: whether configs and indexes of the other components are needed; they are there before ``choose`` is
            called.

    Raises:
        HubError: the repo cannot be read, or its records are impossible.
        InputError: a file of it is malformed. All errors of the block name the address, too.
    """
    with quiet_hub():
        repo = RemoteRepo.open(address)
    with shadowing(repo, choose, variant, has_others=has_others) as shadow:
        yield shadow


@contextmanager
def shadowing(
    repo: RemoteRepo, choose: Choose, variant: str | None = None, *, has_others: bool = True
) -> Iterator[Shadow]:
    """The same for a repo that is open already."""
    with temporary_folder() as folder:
        shadow = Shadow(repo, folder)
        with naming(shadow.folder, repo.address):
            with quiet_hub():
                fill(shadow, choose, variant, has_others=has_others)
            yield shadow


@contextmanager
def naming(folder: Path, address: HubAddress) -> Iterator[None]:
    """Let the errors of a block name an address in place of the folder that stands for it."""
    try:
        yield
    except LensconvError as error:
        error.message, error.hint = (_named(text, folder, address) for text in (error.message, error.hint))
        error.args = (error.message,)
        raise


def _named(text: str, folder: Path, address: HubAddress) -> str:
    for name in (str(folder), printable(str(folder))):
        text = text.replace(name, str(address))
    return text


def fill(shadow: Shadow, choose: Choose, variant: str | None = None, *, has_others: bool = True) -> None:
    """Write a repo's files into its folder, with the content that the checks of some components need.

    Args: those of ``shadowed``.

    Raises:
        HubError: a file cannot be read, or differs from the Hub's record.
        MalformedCheckpoint: a weight file breaks its format.
        UnsupportedCheckpoint: the checkpoint contains no safetensors weights.
    """
    files = shadow.repo.files
    for file in files.values():
        _make_hole(shadow.folder / file.path, file.bytes)
    shadow.fetch([path for path in ROOT_NAMES if path in files])
    try:
        if has_others:
            shadow.fetch(_files_of_components(shadow, variant))
        prefixes = [_component_prefix(shadow, component) for component in choose(shadow.folder)]
    except InputError:
        # Opening the folder raises the reason.
        return
    weights = [path for prefix in prefixes if prefix is not None for path in _fetch_small(shadow, prefix, variant)]
    first = max(LEAST_FIRST_BYTES, FIRST_BYTES // max(len(weights), 1))
    shadow.at_once(lambda path: _write_header(shadow, path, first), weights)


def _fetch_small(shadow: Shadow, prefix: str, variant: str | None) -> list[str]:
    """Read the small files of a component; returns the paths of its weight files."""
    files = shadow.repo.files
    names = [path.removeprefix(prefix) for path in files if path.startswith(prefix)]
    names = [name for name in names if "/" not in name]
    needed = [name for name in names if name in COMPONENT_NAMES or plain_name(name).endswith(INDEX_SUFFIX)]
    shadow.fetch([prefix + name for name in needed])
    try:
        return [prefix + name for name in weight_files(shadow.folder / prefix, variant) if name in names]
    except InputError:
        # Opening the folder raises the reason.
        return []


def _make_hole(file: Path, size: int) -> None:
    """Make a sparse file of a size."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("xb") as stream:
        stream.truncate(size)
        # Every user may read it, like a file on the Hub.
        os.fchmod(stream.fileno(), 0o644)


def _component_prefix(shadow: Shadow, component: str | None) -> str | None:
    """The component's folder in the repo, with the slash; None if the component does not exist."""
    if PIPELINE_INDEX not in shadow.repo.files:
        return "" if component is None else None
    components = pipeline_components(shadow.folder)
    if component is None:
        component = next((name for name in DENOISERS if name in components), None)
    return f"{component}/" if component in components else None


def _files_of_components(shadow: Shadow, variant: str | None) -> list[str]:
    """Configs and indexes of all components, which show what their loaders open; none outside of a pipeline.

    Indexes of other variants are needed only where there are no plain weights.
    """
    if PIPELINE_INDEX not in shadow.repo.files:
        return []
    folders = {folder.name for folder, *_ in component_folders(shadow.folder)}
    paths = [(path, *path.rpartition("/")[::2]) for path in shadow.repo.files]
    plain = {folder for _, folder, name in paths if is_weight_name(name) and not variant_of(name)}

    def is_needed(folder: str, name: str) -> bool:
        is_index = is_weight_name(name) and name.endswith(".json")
        return name in COMPONENT_NAMES or (is_index and (folder not in plain or variant_of(name) in ("", variant)))

    return [path for path, folder, name in paths if folder in folders and is_needed(folder, name)]


def _write_header(shadow: Shadow, path: str, first: int) -> None:
    """Write the header of a weight file into the folder, without data that was read with it."""
    file, size = shadow.folder / path, shadow.repo.files[path].bytes
    content = shadow.repo.read(path, 0, first)
    end = PREFIX_BYTES + header_length(content, size, file)
    if end > len(content):
        content += shadow.repo.read(path, len(content), end)
    with file.open("r+b") as stream:
        stream.write(content[:end])
