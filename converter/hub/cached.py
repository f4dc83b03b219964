"""A repo on the Hub together with what the cache of huggingface_hub has of it.

The cache keeps the content of a file under its checksum in ``blobs``, the files of a commit as links to these in
``snapshots/COMMIT``, the commits of branches and tags in ``refs``, and lists of all files of a commit in ``trees``.
"""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from converter.checkpoint.writer import replace_file
from converter.errors import HubError, OutputError
from converter.hub.addresses import HubAddress
from converter.hub.client import quiet_hub
from converter.hub.records import parse_records
from converter.hub.remote import RemoteRepo
from converter.hub.requests import Requests
from converter.hub.retry import Retry

#: Whether the name of a revision is that of a commit.
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAIN = "main"


class CachedRepo(RemoteRepo):
    """A repo at one commit, whose files are read from the cache where it has them.

    Open one with ``open_cached``.
    """

    @property
    def folder(self) -> Path:
        """The folder of the commit in the cache, whether it exists or not."""
        return self._place / "snapshots" / str(self.address.revision)

    @property
    def blobs(self) -> Path:
        """The folder with the contents of files in the cache."""
        return self._place / "blobs"

    @property
    def _place(self) -> Path:
        return _place_of(self.address)

    def cached(self, path: str) -> Path | None:
        """Where the cache has a file of the repo; None if it does not.

        Raises:
            HubError: the cache has it with another size than the Hub.
        """
        record = self.files[path]
        blob = self.blobs / (record.sha256 or record.git_sha1)
        file = next((place for place in (self.folder / path, blob) if place.is_file()), None)
        if file is not None and (size := file.stat().st_size) != record.bytes:
            raise HubError(
                f"{self.where(path)}: has {record.bytes} bytes on the Hub, but {size} in the cache",
                f"Delete {file.resolve()}, then run the command again.",
            )
        return file

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """Read a range of a file; see ``RemoteRepo.read``."""
        file = self.cached(path)
        if file is None:
            return super().read(path, start, end)
        with file.open("rb") as stream:
            stream.seek(start)
            return stream.read() if end is None else stream.read(end - start)

    def note_commit(self, revision: str | None) -> None:
        """Note in the cache which commit a revision is, so that the repo can be opened without the Hub.

        Args:
            revision: a branch, a tag or a commit; None for the main branch.
        """
        name = revision or _MAIN
        note = self._place / "refs" / name
        # The cache may be read-only if it has all files.
        with suppress(OSError, OutputError):
            if not _COMMIT.fullmatch(name):
                note.parent.mkdir(parents=True, exist_ok=True)
                replace_file(note, str(self.address.revision).encode())


def open_cached(address: HubAddress) -> CachedRepo:
    """Open a repo; with HF_HUB_OFFLINE without a request, at the commit that the cache has.

    Raises:
        HubError: offline, the cache does not know the revision or which files it has. Otherwise, as
            ``RemoteRepo.open``.
        UsageError: a repo cannot have this name.
    """
    from huggingface_hub import is_offline_mode

    with quiet_hub():
        return _open_offline(address) if is_offline_mode() else CachedRepo.open(address)


def _open_offline(address: HubAddress) -> CachedRepo:
    """Open a repo with what the cache notes about it."""
    from huggingface_hub import errors, get_cached_repo_tree

    try:
        pinned = replace(address, revision=_noted_commit(address))
        listed = get_cached_repo_tree(address.repo_id, revision=pinned.revision)
    except (OSError, ValueError, errors.CachedRepoTreeNotFoundError) as error:
        raise HubError(
            f"{address}: is not in the cache, and HF_HUB_OFFLINE forbids requests to the Hub", "Unset HF_HUB_OFFLINE."
        ) from error
    # The list is parsed like one of the Hub, since any program may have written it. It tells no sha256.
    records = [{"type": "file", "path": file.path, "size": file.size, "oid": file.blob_id} for file in listed]
    return CachedRepo(
        pinned, parse_records(pinned, records), Requests(None, None, Retry(0, attempts=1), threading.Event())
    )


def _noted_commit(address: HubAddress) -> str:
    """The commit that the cache notes for a revision.

    Raises:
        OSError: it notes none.
        ValueError: the note is not a commit.
    """
    revision = address.revision or _MAIN
    commit = revision
    if not _COMMIT.fullmatch(revision):
        commit = (_place_of(address) / "refs" / revision).read_text("ascii").strip()
    if not _COMMIT.fullmatch(commit):
        raise ValueError(f"{commit!r:.60} is not a commit")
    return commit


def cache_folder() -> Path:
    """Where the cache is."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def _place_of(address: HubAddress) -> Path:
    """The folder of a repo in the cache."""
    from huggingface_hub.file_download import repo_folder_name

    return cache_folder() / repo_folder_name(repo_id=address.repo_id, repo_type="model")
