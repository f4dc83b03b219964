"""A pipeline repo on the Hub as a folder on this machine: what its loaders open, in the cache of huggingface_hub.

What is needed is decided before anything large is downloaded, on a temporary folder in the repo's place. All files are
those of one commit. Weights in formats that may contain pickles are never downloaded.
"""

from __future__ import annotations

import glob
import math
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.components import PipelineComponent, require_loadable
from converter.checkpoint.ignored import is_ignored
from converter.checkpoint.source import PIPELINE_INDEX
from converter.checkpoint.weights import PICKLE_SUFFIXES, holds_weights
from converter.console import SILENT, Progress, Reporter, readable_size
from converter.errors import DiskError, HubError
from converter.hub.addresses import HubAddress, is_address, parse_address
from converter.hub.cached import CachedRepo, cache_folder, open_cached
from converter.hub.client import bounded_hub, quiet_hub
from converter.hub.records import RemoteFile
from converter.hub.retry import Retry
from converter.hub.shadow import naming, shadowing
from converter.threads import run_beside

#: How often a download is tried; each time, only files that are not in the cache yet are downloaded.
_ATTEMPTS = 5
#: Seconds to wait for an answer; the Hub's own gateways give up after one minute.
_ANSWER_SECONDS = 120
#: Name of the bar that huggingface_hub advances by the bytes that it has written.
_WRITTEN = "huggingface_hub.snapshot_download"
#: Where Linux lists the open files of this process.
_DESCRIPTORS = Path("/proc/self/fd")
_UNFINISHED = ".incomplete"

#: Refuses a folder that is of no use, and returns paths of files that are read besides those of the loaders.
Examine = Callable[[Path], Iterable[str]]


@dataclass(frozen=True)
class Snapshot:
    """The files of a repo that are needed."""

    repo: CachedRepo
    paths: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all of them."""
        return sum(self.repo.files[path].bytes for path in self.paths)

    def missing(self) -> dict[str, RemoteFile]:
        """Those that the cache does not have, by path.

        Raises:
            HubError: the cache has one with another size.
        """
        return {path: self.repo.files[path] for path in self.paths if self.repo.cached(path) is None}

    def missing_bytes(self) -> int:
        """Bytes to download; files with the same content are downloaded once."""
        return sum({file.sha256 or file.git_sha1: file.bytes for file in self.missing().values()}.values())


@contextmanager
def local_folders(
    places: Sequence[Path | str], examine: Examine, reporter: Reporter = SILENT
) -> Iterator[tuple[Path, ...]]:
    """Give a folder for every place: itself, or for an address the repo's files in the cache, which are downloaded.

    Args:
        places: folders, and addresses of pipeline repos such as ``hf://OWNER/NAME@REVISION``.
        examine: called with a folder in place of each repo before anything is downloaded. In it, all files have their
            sizes, but only the index, the manifest, and configs and indexes of components have their content.
        reporter: shows what is downloaded, and how far that is.

    Raises:
        UsageError: an address is malformed.
        InputError: a repo is not a pipeline whose weights are in safetensors files, or what ``examine`` raises.
        DiskError: the disk of the cache does not have enough free space.
        HubError: the Hub refuses, lacks something, or cannot be reached. All errors of the block name addresses, too.
    """
    with ExitStack() as stack:
        snapshots = {
            place: stack.enter_context(_planned(parse_address(place), examine))
            for place in places
            if isinstance(place, str) and is_address(place)
        }
        _announce(list(snapshots.values()), reporter)
        for place, snapshot in snapshots.items():
            _download(snapshot, reporter)
            snapshot.repo.note_commit(parse_address(place).revision)
        yield tuple(
            snapshots[place].repo.folder if isinstance(place, str) and place in snapshots else Path(place)
            for place in places
        )


@contextmanager
def _planned(address: HubAddress, examine: Examine) -> Iterator[Snapshot]:
    """Decide which files of a repo are needed; errors of the block name the repo in place of its folder."""
    repo = open_cached(address)
    # Headers are not needed: loaders check them when the files are here.
    with shadowing(repo, lambda _: ()) as shadow:
        others = [*examine(shadow.folder), PIPELINE_INDEX]
        components = require_loadable(shadow.folder, reads_headers=False)
    chosen = {path for path in others if path in repo.files and not holds_weights(path)}
    chosen |= {path for path in repo.files if any(_is_read(path, component) for component in components)}
    with naming(repo.folder, repo.address):
        yield Snapshot(repo, tuple(sorted(chosen)))


def _is_read(path: str, component: PipelineComponent) -> bool:
    """Whether the loader of a component may read a file of the repo."""
    folder, _, name = path.partition("/")
    if folder != component.name or is_ignored(name) or name.endswith(PICKLE_SUFFIXES):
        return False
    return component.reads(component.folder / name)


def _announce(snapshots: Sequence[Snapshot], reporter: Reporter) -> None:
    """Say what is downloaded, and refuse what the disk has no space for.

    Raises:
        DiskError: it has not.
        HubError: something is missing, and requests are forbidden.
    """
    from huggingface_hub import is_offline_mode

    cache, needed = cache_folder(), 0
    for snapshot in snapshots:
        missing, count = snapshot.missing_bytes(), len(snapshot.missing())
        if count and is_offline_mode():
            lack = f"the cache lacks {count} of {len(snapshot.paths)} files"
            raise HubError(
                f"{snapshot.repo.address}: {lack}, and HF_HUB_OFFLINE forbids requests to the Hub",
                "Unset HF_HUB_OFFLINE.",
            )
        needed += missing
        total = f"{snapshot.repo.address}: {readable_size(snapshot.bytes)} in {len(snapshot.paths)} files"
        if not count:
            reporter.note(f"{total}, all of them in the cache, {cache}")
            continue
        if snapshot.bytes > missing:
            total += f", {readable_size(snapshot.bytes - missing)} of them in the cache"
        reporter.note(f"{total}; downloading {readable_size(missing)} to {cache}")
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.is_dir())).free
    if needed > free:
        raise DiskError(
            f"{cache}: the download needs {readable_size(needed)}, and {readable_size(free)} are free: "
            f"{needed - free} bytes too few",
            "Free some space, or set HF_HOME to another disk.",
        )


def _download(snapshot: Snapshot, reporter: Reporter) -> None:
    """Download what the cache does not have.

    Raises:
        HubError: the Hub refuses, cannot be reached, or sends something else than it has recorded.
        DiskError: the disk is full.
    """
    if not all((snapshot.repo.folder / path).is_file() for path in snapshot.paths):
        stopping = threading.Event()
        retry = Retry(math.inf, attempts=_ATTEMPTS, sleep=stopping.wait, reporter=reporter)
        address = snapshot.repo.address
        with (
            quiet_hub(),
            bounded_hub(_ANSWER_SECONDS),
            reporter.progress(f"downloading {address.repo_id}", snapshot.missing_bytes()) as shown,
        ):
            run_beside(
                lambda: retry.call(str(address), lambda: _try_to_download(snapshot, shown, stopping)),
                refresh=shown.refresh,
                stop=lambda: _stop(snapshot.repo.blobs, stopping),
            )
    for path in snapshot.paths:
        if snapshot.repo.cached(path) is None:
            raise HubError(f"{snapshot.repo.where(path)}: was not downloaded", "Run the command again.")


def _try_to_download(snapshot: Snapshot, shown: Progress, stopping: threading.Event) -> None:
    from huggingface_hub import snapshot_download

    # An earlier try may have counted bytes of files that it did not finish.
    shown.advance(shown.total - snapshot.missing_bytes() - shown.done)
    address = snapshot.repo.address
    snapshot_download(
        address.repo_id,
        revision=address.revision,
        allow_patterns=[glob.escape(path) for path in snapshot.paths],
        tqdm_class=_make_bar(shown, stopping),
    )


class _Stopped(Exception):
    """The download was interrupted."""


def _make_bar(shown: Progress, stopping: threading.Event) -> Any:
    """The class of a bar that forwards the bytes that were written, and ends the threads of an interrupted download."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Forwarding(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._counts = options.get("name") == _WRITTEN
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            if stopping.is_set():
                raise _Stopped
            if self._counts:
                shown.advance(int(n or 0))
            return None

    return Forwarding


def _stop(blobs: Path, stopping: threading.Event) -> None:
    """End the threads of a download, and remove what they have begun to write: huggingface_hub does not continue it."""
    from huggingface_hub.utils._xet import abort_xet_session

    stopping.set()
    abort_xet_session()  # type: ignore[no-untyped-call]
    for descriptor in _DESCRIPTORS.iterdir():
        # A file may be closed meanwhile.
        with suppress(OSError):
            file = descriptor.readlink()
            if file.parent == blobs and file.name.endswith(_UNFINISHED):
                file.unlink()
