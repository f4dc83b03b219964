"""A publication from beginning to end.

The order is what makes it safe: the folder is examined before the first request (but for the bytes of giant files,
which are compared with the manifest when they have been sent, before the commit), the right to write is proven before
the first byte is sent, everything is uploaded before the one commit, the commit is proven before it is tagged. Each
step can be repeated, so that the same command goes on wherever an earlier one was stopped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from converter.console import SILENT, Reporter, readable_size
from converter.conversion.release.manifest import CARD_NAME
from converter.errors import HubError, MissingObject, UsageError, printable
from converter.hub.addresses import parse_address
from converter.hub.client import bounded_hub, quiet_hub
from converter.hub.failures import LATER_HINT, XET_HINT
from converter.hub.remote import RemoteRepo
from converter.hub.retry import Retry
from converter.publication.difference import Difference, compare
from converter.publication.files import note_hashed
from converter.publication.options import MAIN, PublishOptions
from converter.publication.preflight import FitRelease, examine_release, hash_trusted
from converter.publication.proof import ReadBack, prove_bytes, prove_records
from converter.publication.pull_request import offer_pull_request, open_pull_request
from converter.publication.receipt import Receipt, is_proven, receipt_file, write_receipt
from converter.publication.session import HubSession, RemoteRefs
from converter.publication.transaction import Target, make_commit
from converter.publication.upload import read_unchanged, refuse_changed, upload
from converter.verification.report import first_few

#: Files from this size on are hashed by what uploads them, if that has to be done: reading them once more would take
#: as long as a fifth of sending them to a Hub that is near.
TRUSTED_BYTES = 1 << 30
#: Names that git takes for branches and tags, without what it takes only in places.
_REF_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,98}[A-Za-z0-9])?")
#: Length of a commit's title that the Hub takes.
_TITLE_LENGTH = 200
#: Seconds that a Hub has for an answer; its own gateways give up after one minute.
_ANSWER_SECONDS = 120
#: Status that says that a tag of that name is there.
_CONFLICT = 409


def publish(
    root: Path,
    repository: str,
    options: PublishOptions | None = None,
    *,
    reporter: Reporter = SILENT,
) -> Receipt:
    """Put a release on the Hub, wholly and proven, or leave the repo as it is.

    The Hub, the token and the caches are those of huggingface_hub: HF_ENDPOINT, HF_TOKEN or ``hf auth login``, HF_HOME,
    HF_HUB_DISABLE_XET.

    Args:
        root: the release folder, with a manifest and a card.
        repository: ``OWNER/NAME``.
        options: how to publish.
        reporter: shows progress and notes.

    Raises:
        UsageError: what was asked for makes no sense.
        MissingInput: something is missing or cannot be read.
        ReleaseError: the release must not be published as it is, or was changed meanwhile.
        HubError: the Hub refuses, holds something else, or cannot be reached.
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
    if parse_address(f"hf://{repository}").revision is not None:
        raise UsageError(f"{repository}: is no repo", "Write OWNER/NAME, and the branch with --revision.")
    if options.create_pr and (options.tag or options.revision != MAIN):
        raise UsageError(
            "--create-pr goes with neither --tag nor --revision", "Merge the pull request, then publish with --tag."
        )
    for option, name in (("--revision", options.revision), ("--tag", options.tag)):
        if name is not None and (not _REF_NAME.fullmatch(name) or ".." in name or "//" in name or "/." in name):
            raise UsageError(f"{option} {name}: no name that git takes", "Use letters, digits, '.', '-', '_'.")
    if options.tag is not None and (options.tag in (MAIN, options.revision) or options.tag.startswith("refs/")):
        raise UsageError(f"--tag {options.tag}: a branch has that name", "Choose another, such as v1.")
    if not options.message.strip() or "\n" in options.message or len(options.message) > _TITLE_LENGTH:
        raise UsageError(f"--message takes one line of up to {_TITLE_LENGTH} characters")


@dataclass
class _Publication:
    """One run, step by step."""

    session: HubSession
    release: FitRelease
    options: PublishOptions
    reporter: Reporter
    pull_request: int | None = None
    private: bool = False
    read: dict[str, RemoteRepo] = field(default_factory=dict)
    """Commits whose records were read; they never change."""

    def run(self) -> Receipt:
        """Publish, and say what was done."""
        user = self.session.user()
        if not self._prepare_repo():
            hash_trusted(self.release, self.release.files, self.reporter)
            return self._receipt(None, None, compare(self.release.files, {}), None)
        refs = self.session.refs()
        target = self._choose_target(refs)
        difference = self._difference(target)
        self._refuse_taken_tag(refs, target, difference)
        if difference and self.options.create_pr and not self.options.dry_run:
            target = self._enter_pull_request(user)
            difference = self._difference(target)
        for line in _announce(difference):
            self.reporter.note(line)
        # What is uploaded is hashed on the way.
        sent = set() if self.options.dry_run else {file.name for file in difference.added}
        hash_trusted(self.release, (file for file in self.release.files if file.name not in sent), self.reporter)
        if self.options.dry_run:
            return self._receipt(None, target, difference, None)
        if not difference:
            self.reporter.note(f"{target.revision} holds this release already")
        commit = self._commit(target, difference) if difference else target.parent
        read_back = self._prove(commit, target, difference)
        if self.pull_request is not None:
            offer_pull_request(self.session, self.pull_request)
        if self.options.tag:
            self._tag(self.options.tag, commit)
        receipt = self._receipt(commit, target, difference, read_back)
        if not write_receipt(self._receipt_file, receipt):
            self.reporter.note(f"{printable(str(self._receipt_file))}: no receipt can be written there")
        return receipt

    @property
    def _receipt_file(self) -> Path:
        return self.options.receipt or receipt_file(self.release.root)

    def _prepare_repo(self) -> bool:
        """Make the repo if there is none, and prove the right to write; False in a dry run that would make it."""
        info = self.session.describe()
        if info is None:
            if self.options.dry_run:
                self.private = self.options.private
                self.reporter.note(f"{self.session.place} would be made")
                return False
            self.session.create(private=self.options.private)
            info = self.session.describe()
        name = getattr(info, "id", self.session.repository)
        if name != self.session.repository:
            raise HubError(
                f"{self.session.place}: is called {name} now",
                "Make the card anew with that name (`lensconv card --repo`), then publish to it.",
            )
        self.private = bool(getattr(info, "private", self.options.private))
        if self.options.private and not self.private:
            raise HubError(
                f"{self.session.place}: is public, and --private does not change that",
                "Change it on the repo's settings page first, or leave --private away.",
            )
        # A pull request may come from whoever may read the repo.
        if not self.options.create_pr:
            self.session.prove_write_access()
        return True

    def _choose_target(self, refs: RemoteRefs) -> Target:
        """The branch, which is made if there is none of that name."""
        revision = self.options.revision
        head = refs.head(revision)
        main = refs.head(MAIN)
        if head is None and main is not None and not self.options.dry_run:
            self.session.call(
                f"making the branch {revision}",
                lambda: self.session.api.create_branch(
                    self.session.repository, branch=revision, revision=MAIN, exist_ok=True
                ),
            )
            head = self.session.refs().head(revision)
        head = head or main
        if head is None:
            raise HubError(f"{self.session.place}: has no branch {MAIN}", "Look at the repo's page.")
        return Target(revision, head)

    def _enter_pull_request(self, user: str) -> Target:
        """The pull request of this release, which is made if there is none."""
        self.pull_request = open_pull_request(self.session, self.options.message, user)
        revision = f"refs/pr/{self.pull_request}"
        head = self.session.refs().head(revision)
        if head is None:
            raise HubError(f"{self.session.place}: pull request {self.pull_request} has no commit", "Look at its page.")
        return Target(revision, head)

    def _difference(self, target: Target) -> Difference:
        return compare(self.release.files, self._records(target.parent).files)

    def _records(self, commit: str) -> RemoteRepo:
        if commit not in self.read:
            self.read[commit] = self.session.files_at(commit)
        return self.read[commit]

    def _refuse_taken_tag(self, refs: RemoteRefs, target: Target, difference: Difference) -> None:
        """Find out before anything is uploaded that the tag names something else."""
        tag = self.options.tag
        tagged = refs.tags.get(tag) if tag else None
        if tagged is not None and (difference or tagged != target.parent):
            raise _taken_tag(self.session, tag, tagged)

    def _commit(self, target: Target, difference: Difference) -> str:
        from huggingface_hub import constants

        card = next((file for file in difference.added if file.name == CARD_NAME), None)
        if card is not None:
            self.session.check_card(read_unchanged(card).decode())
        try:
            return self._upload_and_commit(target, difference)
        except MissingObject as error:
            self.reporter.note(f"{error.message}; uploading once more")
        try:
            return self._upload_and_commit(target, difference)
        except MissingObject as error:
            raise HubError(error.message, LATER_HINT if constants.HF_HUB_DISABLE_XET else XET_HINT) from error

    def _upload_and_commit(self, target: Target, difference: Difference) -> str:
        operations = upload(self.session, difference.added, target.revision, self.reporter)
        refuse_changed(self.release.files)
        note_hashed(self.release.root, difference.added)
        return make_commit(self.session, self.release, target, difference, operations, self.options.message)

    def _prove(self, commit: str, target: Target, difference: Difference) -> ReadBack | None:
        """Hold the commit against the release; what an earlier run has read back is not read again."""
        remote = self._records(commit)
        prove_records(self.release.files, remote)
        everything = self.options.read_back
        if self._is_proven(commit) and not everything:
            return None
        # An earlier run may have ended between its commit and its proof.
        is_new = bool(difference) and self._is_proven(target.parent) and not everything
        files = difference.added if is_new else self.release.files
        return prove_bytes(files, remote, everything=everything, reporter=self.reporter)

    def _is_proven(self, commit: str) -> bool:
        return is_proven(self._receipt_file, self.session.address, commit)

    def _tag(self, tag: str, commit: str) -> None:
        """Tag the commit; a tag of that name that is there already must be this one."""
        from huggingface_hub.errors import HfHubHTTPError

        def make() -> None:
            try:
                # Never told to accept a tag that is there: it could name another commit.
                self.session.api.create_tag(self.session.repository, tag=tag, revision=commit)
            except HfHubHTTPError as error:
                if error.response.status_code != _CONFLICT:
                    raise

        tagged = self.session.refs().tags.get(tag)
        if tagged is None:
            self.session.call(f"tagging {tag}", make)
            tagged = self.session.refs().tags.get(tag)
        if tagged != commit:
            raise _taken_tag(self.session, tag, tagged)

    def _receipt(
        self, commit: str | None, target: Target | None, difference: Difference, read_back: ReadBack | None
    ) -> Receipt:
        return Receipt(
            repository=self.session.repository,
            page=self.session.address,
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


def _announce(difference: Difference) -> Iterator[str]:
    if difference.added:
        yield f"{len(difference.added)} files to upload, {readable_size(difference.added_bytes)}"
    if difference.deleted:
        names = first_few([printable(name) for name in difference.deleted])
        yield f"to be deleted there, as the release does not have them: {names}"


def _taken_tag(session: HubSession, tag: str | None, tagged: str | None) -> HubError:
    if tagged is None:
        return HubError(f"{session.place}: the Hub took tag {tag}, but does not have it", "Publish again.")
    return HubError(
        f"{session.place}: tag {tag} names {tagged[:12]}, which is not this release", "Choose another name for the tag."
    )
