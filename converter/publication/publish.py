"""A publication from beginning to end.

The order of the steps makes it safe. The folder is examined before the first request; only the bytes of giant files are
hashed while they are uploaded, and compared with the manifest before the commit. The right to write is checked before
the first byte is sent. Everything is uploaded before the one commit, and the commit is checked before it is tagged.
Each step can be repeated, so the same command continues where an earlier one was stopped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from converter.console import SILENT, Reporter, readable_size
from converter.conversion.release.manifest import CARD_NAME
from converter.errors import HubError, MissingObject, UsageError, first_few
from converter.hub.addresses import check_repo_id
from converter.hub.client import bounded_hub, quiet_hub
from converter.hub.failures import LATER_HINT, XET_HINT
from converter.hub.retry import Retry
from converter.publication.commit import Target, make_commit
from converter.publication.files import Difference, compare, note_hashed, read_unchanged, refuse_changed
from converter.publication.options import MAIN, PublishOptions
from converter.publication.others import OtherFiles
from converter.publication.preflight import FitRelease, examine_release, hash_trusted
from converter.publication.proof import ReadBack, prove_bytes, prove_records
from converter.publication.receipt import RECEIPT_NAME, Receipt, is_proven, write_receipt
from converter.publication.session import HubSession, RemoteRefs
from converter.publication.upload import upload

#: Files of at least this size are hashed while they are uploaded, if they were never hashed: reading them once more
#: would take a fifth of the time of sending them to a near Hub.
TRUSTED_BYTES = 1 << 30
#: Names that git accepts for branches and tags; what git forbids only at some positions is checked separately.
_REF_NAME = re.compile(r"(?!.*(\.\.|//|/\.|\.lock(/|$)))[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,98}[A-Za-z0-9])?")
_REF_HINT = "Use up to 100 of A-Z, a-z, 0-9 and . _ - /, without '..' and '.lock', with a letter or digit at both ends."
#: Characters of a commit's title that the Hub accepts.
_TITLE_LENGTH = 200
#: Seconds to wait for an answer; the Hub's own gateways give up after one minute.
_ANSWER_SECONDS = 120


def publish(
    root: Path, repository: str, options: PublishOptions | None = None, *, reporter: Reporter = SILENT
) -> Receipt:
    """Publish a release in one verified commit, or leave the repo as it is.

    The Hub, the token and the caches are those of huggingface_hub: HF_ENDPOINT, HF_TOKEN or ``hf auth login``, HF_HOME,
    HF_HUB_DISABLE_XET.

    Args:
        root: the release folder, with a manifest and a card.
        repository: ``OWNER/NAME``.
        options: how to publish.
        reporter: shows progress and notes.

    Raises:
        UsageError: the options contradict each other, or contain a name that is not allowed.
        MissingInput: something is missing or cannot be read.
        ReleaseError: the release must not be published as it is, or was changed meanwhile.
        HubError: the Hub refuses, has files that must not stay beside the release or other contents than expected, or
            cannot be reached.
    """
    options = options or PublishOptions()
    _check_request(repository, options)
    release = examine_release(root, repository, reporter, trusted_from=TRUSTED_BYTES)
    for line in release.advice:
        reporter.note(line)
    with quiet_hub(), bounded_hub(min(options.patience, _ANSWER_SECONDS)):
        session = HubSession(repository, Retry(options.patience, reporter=reporter))
        return _Publication(session, release, options, reporter).run()


def _check_request(repository: str, options: PublishOptions) -> None:
    check_repo_id(repository)
    if options.create_pr and (options.tag or options.revision != MAIN):
        raise UsageError(
            "--create-pr cannot be combined with --tag or --revision",
            "Merge the pull request, then publish with --tag.",
        )
    for option, name in (("--revision", options.revision), ("--tag", options.tag)):
        if name is not None and not _REF_NAME.fullmatch(name):
            raise UsageError(f"{option} {name}: cannot be used as a name", _REF_HINT)
    if options.tag is not None and options.tag.startswith("refs/"):
        raise UsageError(f"--tag {options.tag}: must not begin with refs/", "Choose another name, such as v1.")
    if options.tag in (MAIN, options.revision):
        raise UsageError(f"--tag {options.tag}: a branch has this name", "Choose another name, such as v1.")
    if not options.message.strip() or "\n" in options.message or len(options.message) > _TITLE_LENGTH:
        raise UsageError(f"--message is not one line of up to {_TITLE_LENGTH} characters")


@dataclass
class _Publication:
    """One run, step by step."""

    session: HubSession
    release: FitRelease
    options: PublishOptions
    reporter: Reporter
    pull_request: int | None = None
    private: bool = False

    def __post_init__(self) -> None:
        options = self.options
        self._others = OtherFiles(self.release.files, options.prune, not options.dry_run, self.reporter)

    def run(self) -> Receipt:
        """Publish, and return what was done."""
        user = self.session.user()
        if not self._prepare_repo():
            difference = compare(self.release.files, {})
            self._check_card(difference)
            hash_trusted(self.release, self.release.files, self.reporter)
            return self._receipt(None, None, difference, None)
        refs = self.session.refs()
        target = self._choose_target(refs)
        difference = self._difference(target)
        self._refuse_taken_tag(refs, target, difference)
        self._check_card(difference)
        if difference and self.options.create_pr and not self.options.dry_run:
            target = self._enter_pull_request(user)
            difference = self._difference(target)
        self._announce(difference)
        # Files that will be uploaded are hashed meanwhile.
        sent = set() if self.options.dry_run else {file.name for file in difference.added}
        hash_trusted(self.release, (file for file in self.release.files if file.name not in sent), self.reporter)
        if self.options.dry_run:
            return self._receipt(None, target, difference, None)
        self._create_branch(refs, target)
        if not difference:
            self.reporter.note(f"{target.revision} contains this release already")
        tagged = refs.tags.get(self.options.tag or "")
        commit = self._commit(target, difference) if difference else tagged or target.parent
        read_back = self._prove(commit, target, difference)
        if self.pull_request is not None:
            self.session.offer_pull_request(self.pull_request)
        if self.options.tag:
            self._tag(self.options.tag, commit)
        receipt = self._receipt(commit, target, difference, read_back)
        if not write_receipt(self._receipt_file, receipt):
            self.reporter.note(f"{self._receipt_file}: the receipt cannot be written")
        return receipt

    @property
    def _receipt_file(self) -> Path:
        return self.options.receipt or self.release.root / RECEIPT_NAME

    def _prepare_repo(self) -> bool:
        """Create the repo if necessary, and check the right to write; return False if a dry run would create it."""
        info = self.session.describe()
        if info is None:
            if self.options.dry_run:
                self.private = self.options.private
                self.reporter.note(f"{self.session.address} would be created")
                return False
            self.session.create(private=self.options.private)
            info = self.session.describe()
        name = getattr(info, "id", self.session.repository)
        if name != self.session.repository:
            raise self.session.error(
                f"is now called {name}",
                "Make the card again with this name (`lensconv card --repo`), then publish to it.",
            )
        self.private = bool(getattr(info, "private", self.options.private))
        if self.options.private and not self.private:
            raise self.session.error(
                "is public, and --private does not change that",
                "Change it on the repo's settings page first, or publish without --private.",
            )
        # Everyone who may read the repo may open a pull request.
        if not self.options.create_pr:
            self.session.prove_write_access()
        return True

    def _choose_target(self, refs: RemoteRefs) -> Target:
        """Return the branch; one that does not exist yet begins at the head of main."""
        revision = self.options.revision
        head = refs.head(revision) or refs.head(MAIN)
        if head is None:
            raise self.session.error(f"has no branch {MAIN}", "Create it, or give an existing branch with --revision.")
        return Target(revision, head)

    def _create_branch(self, refs: RemoteRefs, target: Target) -> None:
        if self.pull_request is None and refs.head(target.revision) is None:
            self.session.create_branch(target.revision, target.parent)

    def _enter_pull_request(self, user: str) -> Target:
        """Return the pull request of this release, which is created if it does not exist."""
        self.pull_request = self.session.open_pull_request(self.options.message, user)
        revision = f"refs/pr/{self.pull_request}"
        head = self.session.refs().head(revision)
        if head is None:
            hint = "Close it on its page, then publish again."
            raise self.session.error(f"pull request {self.pull_request} has no commit", hint)
        return Target(revision, head)

    def _difference(self, target: Target) -> Difference:
        return self._others.difference(self.session.files_at(target.parent))

    def _announce(self, difference: Difference) -> None:
        if difference.added:
            size = readable_size(difference.added_bytes)
            self.reporter.note(f"{len(difference.added)} files to upload, {size}")
        if difference.deleted:
            names = first_few(difference.deleted)
            self.reporter.note(f"to be deleted in the repo, because the release does not have them: {names}")
        if difference.kept:
            self.reporter.note(
                f"kept in the repo, although the release does not have them: {first_few(difference.kept)}"
            )

    def _refuse_taken_tag(self, refs: RemoteRefs, target: Target, difference: Difference) -> None:
        """Find out before the upload that the tag already names another commit."""
        tagged = refs.tags.get(self.options.tag or "")
        if tagged is not None and (difference or not self._is_tagged(tagged, target.parent)):
            raise self._taken_tag(tagged)

    def _is_tagged(self, tagged: str, commit: str) -> bool:
        """Whether a tag names this commit, or another one with the same release."""
        return tagged == commit or not compare(self.release.files, self.session.files_at(tagged).files)

    def _check_card(self, difference: Difference) -> None:
        """Let the Hub check a card that it does not have yet."""
        card = next((file for file in difference.added if file.name == CARD_NAME), None)
        if card is not None:
            self.session.check_card(read_unchanged(card).decode())

    def _commit(self, target: Target, difference: Difference) -> str:
        from huggingface_hub import constants

        try:
            return self._upload_and_commit(target, difference)
        except MissingObject as error:
            self.reporter.note(f"{error.message}; uploading once more")
        try:
            return self._upload_and_commit(target, difference)
        except MissingObject as error:
            raise HubError(error.message, LATER_HINT if constants.HF_HUB_DISABLE_XET else XET_HINT) from error

    def _upload_and_commit(self, target: Target, difference: Difference) -> str:
        operations = upload(self.session, difference, target.revision, self.reporter)
        refuse_changed(self.release.files)
        note_hashed(self.release.root, difference.added)
        return make_commit(self.session, self.release, target, operations, self.options.message)

    def _prove(self, commit: str, target: Target, difference: Difference) -> ReadBack | None:
        """Compare the commit with the release. Files that an earlier run has read back are not read again."""
        remote = self.session.files_at(commit)
        prove_records(self.release.files, remote, difference.deleted)
        everything = self.options.read_back
        if self._is_proven(commit) and not everything:
            return None
        # An earlier run may have ended between its commit and the check.
        is_new = self._is_proven(target.parent) and not everything
        files = difference.added if is_new else self.release.files
        return prove_bytes(files, remote, everything=everything, reporter=self.reporter)

    def _is_proven(self, commit: str) -> bool:
        return is_proven(self._receipt_file, self.session.page, commit)

    def _tag(self, tag: str, commit: str) -> None:
        """Tag the commit. If the tag exists already, it must name a commit with this release."""
        tagged = self.session.refs().tags.get(tag)
        if tagged is None:
            self.session.create_tag(tag, commit)
            tagged = self.session.refs().tags.get(tag)
        if tagged is None:
            raise self.session.error(f"tag {tag} was accepted, but the Hub does not list it", "Publish again.")
        if not self._is_tagged(tagged, commit):
            raise self._taken_tag(tagged)

    def _taken_tag(self, tagged: str) -> HubError:
        reason = f"tag {self.options.tag} points to another commit, {tagged[:12]}"
        return self.session.error(reason, "Choose another name for the tag.")

    def _receipt(
        self, commit: str | None, target: Target | None, difference: Difference, read_back: ReadBack | None
    ) -> Receipt:
        return Receipt(
            repository=self.session.repository,
            page=self.session.page,
            revision=target.revision if target else self.options.revision,
            commit=commit,
            parent=target.parent if target else None,
            tag=self.options.tag,
            pull_request=self.pull_request,
            private=self.private,
            release=self.release,
            difference=difference,
            read_back=read_back,
            dry_run=self.options.dry_run,
        )
