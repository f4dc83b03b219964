"""The files of a repo that a release does not contain: which of them a publication deletes, and which it keeps.

Files that a former release listed in its manifest are deleted, as the new one replaces it. All others stay, unless they
would change what people load.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from converter.checkpoint.header import parse_json_object
from converter.console import Reporter
from converter.conversion.release.manifest import MANIFEST_NAME, names_in
from converter.errors import HubError, MalformedCheckpoint, first_few
from converter.hub.remote import RemoteRepo
from converter.hub.shadow import MAXIMUM_SMALL_BYTES
from converter.publication.files import Difference, PublishedFile, compare, other_files
from converter.verification.beside import dangers

_HINT = (
    "Delete these files on the repo's page, or publish with --prune, which deletes all files that the release does not "
    "contain; --dry-run --prune --json lists them. At a terminal, publish asks."
)


@dataclass
class OtherFiles:
    """Decides about the files of a repo that a release does not contain.

    Args:
        files: the files of the release.
        prune: whether all others are deleted.
        may_ask: whether a person may be asked, if there is one.
        reporter: asks, and shows notes.
    """

    files: tuple[PublishedFile, ...]
    prune: bool
    may_ask: bool
    reporter: Reporter
    agreed: set[str] = field(default_factory=set, init=False)
    """Files that a person wants to be deleted."""

    def difference(self, remote: RemoteRepo) -> Difference:
        """Return what a commit must change.

        Args:
            remote: its parent.

        Raises:
            HubError: files in the repo must not stay beside the release, and nobody wants them to be deleted.
        """
        unwanted = {*other_files(self.files, remote.files)} if self.prune else {*self._former(remote)}
        difference = compare(self.files, remote.files, unwanted | self.agreed)
        found = dangers(difference.kept, [file.name for file in self.files])
        if not found:
            return difference
        reason = f"{remote.address}: {first_few([f'{name} {fault}' for name, fault in found.items()])}"
        if not (self.may_ask and self.reporter.confirm(f"{reason}. Delete {'them' if len(found) > 1 else 'it'}?")):
            raise HubError(reason, _HINT)
        self.agreed |= found.keys()
        return compare(self.files, remote.files, unwanted | self.agreed)

    def _former(self, remote: RemoteRepo) -> frozenset[str]:
        """Return the names that the manifest of a former release lists; none if it cannot be understood."""
        record = remote.files.get(MANIFEST_NAME)
        if record is None:
            return frozenset()
        try:
            if record.bytes > MAXIMUM_SMALL_BYTES:
                raise MalformedCheckpoint(MANIFEST_NAME, f"has {record.bytes} bytes")
            return names_in(parse_json_object(remote.read(MANIFEST_NAME), Path(MANIFEST_NAME), "its content"))
        except MalformedCheckpoint as error:
            self.reporter.note(
                f"{remote.address}/{error.message}; no file of the repo counts as one of a former release"
            )
            return frozenset()
