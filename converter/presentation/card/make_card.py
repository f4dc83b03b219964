"""Make a card: read the release and its evidence, render the card, write the files, and list them in the manifest.

The manifest is written last, so that every file in it exists. If a run is stopped before, the manifest does not match
the files; `verify` and `publish` report that, and the next run corrects it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from converter.checkpoint.writer import folder_inside, replace_file
from converter.conversion.release.manifest import CARD_NAME, MANIFEST_NAME, ReleaseFile, describe_file
from converter.errors import MissingInput, ReleaseError, UsageError, first_few, reason_of
from converter.hub.addresses import is_repo_id
from converter.measurement.evidence.names import ABLATION_NAME, MATRIX_NAME, OFFLOAD_NAME, ORIGINAL
from converter.presentation.card.additions import collect_additions
from converter.presentation.card.context import SECTIONS, build_context, find_ablation, find_gallery, left_out
from converter.presentation.card.environment import render_card
from converter.presentation.card.evidence import CardEvidence, read_card_evidence
from converter.presentation.card.metadata import CardMetadata, GalleryImage
from converter.presentation.card.metadata_rules import check_metadata
from converter.presentation.card.options import CardOptions
from converter.presentation.card.pictures import find_pictures
from converter.presentation.card.release import CardRelease, read_release
from converter.presentation.prompt_texts import find_prompt_texts

#: Bits of a weight for which the Hub has a tag and a filter, such as ``4-bit``; it shows them as "4-bit precision".
_TAGGED_BITS = (4, 8)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class CardReport:
    """What was written."""

    card: Path
    files: tuple[ReleaseFile, ...]
    """The card, and all files that were added to the release with it."""
    sections: tuple[str, ...]
    """Sections in the order of the card; empty for an adopted card."""
    left_out: Mapping[str, str]
    """Sections that are missing, and why."""
    verified: bool
    """Whether every figure belongs to the release's weights by their sha256."""
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``lensconv card --json`` shows it."""
        return {
            "card": str(self.card),
            "files": [file.to_dict() for file in self.files],
            "sections": list(self.sections),
            "left_out": [{"section": name, "reason": reason} for name, reason in self.left_out.items()],
            "unverified": not self.verified,
            "warnings": list(self.warnings),
        }


def make_card(root: Path, evidence: Path | None = None, options: CardOptions | None = None) -> CardReport:
    """Make the README.md of a release from its measurements, and add the measurements to the release.

    Args:
        root: the release folder.
        evidence: the folder with the measurements; by default the release itself.
        options: how to make the card.

    Raises:
        UsageError: an option has an invalid value.
        MissingInput: a file is missing or cannot be read.
        EvidenceError: measurements are malformed, belong to other weights, or cannot be verified; a picture or the
            suite does not belong to them.
        SuiteError: the suite is malformed.
        InputError: the release or the template breaks its format.
        ReleaseError: the Hub would not accept the card, or a card that was edited by hand would be lost.
        OutputError: a file cannot be written.
    """
    options = options or CardOptions()
    if options.repo is not None and not is_repo_id(options.repo):
        raise UsageError(f"--repo {options.repo}: is not OWNER/NAME")
    release = read_release(root)
    if options.adopt:
        return _adopt(release, options)
    found = read_card_evidence(release, evidence, unverified=options.unverified)
    texts = find_prompt_texts(found.files.get(MATRIX_NAME), options.prompts)
    metadata = _metadata(release, found, options, find_gallery(found, texts))
    pictures = find_pictures(found)
    contents = collect_additions(release, found, pictures)
    added = [describe_file(name, content) for name, content in contents.items()]
    name = root.resolve().name
    context = build_context(
        release,
        found,
        metadata,
        repository=options.repo or name,
        prompt_texts=texts,
        pictures=pictures,
        additions=added,
    )
    text = render_card(context, options.template)
    unknown = _check_metadata(root, text, {*release.manifest.files, *contents})
    _keep_edited_card(release, text)
    contents[CARD_NAME] = text.encode()
    _write(release, contents, verified=found.is_verified, repository=options.repo)
    return CardReport(
        card=root / CARD_NAME,
        files=tuple(describe_file(name, contents[name]) for name in sorted(contents)),
        sections=tuple(section for section in SECTIONS if context.get(section, True)),
        left_out=left_out(context),
        verified=found.is_verified,
        warnings=(*_warnings(metadata, found), *unknown),
    )


def _adopt(release: CardRelease, options: CardOptions) -> CardReport:
    """List the existing card, with the files that were added with an earlier one."""
    card = release.root / CARD_NAME
    try:
        content = card.read_bytes()
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ReleaseError(f"{card}: is not UTF-8", "Save it as UTF-8.") from error
    except OSError as error:
        raise MissingInput(card, reason_of(error), "Write a card, or omit --adopt.") from error
    warnings = _check_metadata(release.root, text, release.manifest.files)
    contents = {CARD_NAME: content}
    for name in release.added:
        file = release.root / name
        if name != CARD_NAME and file.is_file():
            contents[name] = file.read_bytes()
    verified = release.manifest.is_card_verified
    _write(release, contents, verified=verified, repository=options.repo or release.manifest.card_repository)
    files = tuple(describe_file(name, contents[name]) for name in sorted(contents))
    return CardReport(card, files, (), {}, verified, warnings)


def _metadata(
    release: CardRelease, evidence: CardEvidence, options: CardOptions, gallery: tuple[GalleryImage, ...]
) -> CardMetadata:
    original: Mapping[str, Any] = next(
        (content["sources"][ORIGINAL] for content in evidence.files.values() if "sources" in content), {}
    )
    candidates = (options.base_model, original.get("repo_id"), evidence.summary.get("source_model"))
    base = next((str(name) for name in candidates if name and is_repo_id(str(name))), None)
    if options.base_model is not None and base != options.base_model:
        raise UsageError(f"--base-model {options.base_model}: is not OWNER/NAME")
    revision = options.base_revision or original.get("revision")
    if options.base_revision is not None and not _COMMIT.fullmatch(options.base_revision):
        raise UsageError(f"--base-revision {options.base_revision}: is not a commit of 40 hexadecimal digits")
    tags = [*(["lens"] if release.main.is_lens else []), "text-to-image", "sdnq", "quantized", *_weights_tags(release)]
    has_ablation = bool(find_ablation(evidence)) or ABLATION_NAME in evidence.files
    optional_tags = {"ablation": has_ablation, "model-cpu-offload": OFFLOAD_NAME in evidence.files}
    tags += [tag for tag, applies in optional_tags.items() if applies]
    return CardMetadata(
        license=options.license,
        license_name=options.license_name,
        license_link=_license_link(release, options),
        base_model=base,
        base_revision=revision if base is not None else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        languages=options.languages or ("en",),
        tags=(*tags, *options.tags),
        gallery=gallery,
    )


def _weights_tags(release: CardRelease) -> Iterator[str]:
    """Yield the tags that follow from how the weights are stored; the same one may come twice."""
    if not any(component.is_dynamic for component in release.converted):
        yield "static-quantization"
    yield from (f"{part.bits}-bit" for part in release.converted if part.bits in _TAGGED_BITS)
    yield from (component.weights_dtype for component in release.converted if component.weights_dtype)


def _license_link(release: CardRelease, options: CardOptions) -> str | None:
    """The link to the text of a license that the Hub does not list, by default to a file of the release.

    Raises:
        UsageError: its name or its text is missing, or the Hub lists the license.
    """
    if options.license != "other":
        if options.license_name is not None:
            raise UsageError("--license-name needs --license other")
        return options.license_link
    if options.license_name is None:
        raise UsageError("--license other needs --license-name", "Choose a short name, such as my-license-1.0.")
    if options.license_link is not None:
        return options.license_link
    files = sorted(name for name in release.manifest.files if name.startswith("LICENSE") and "/" not in name)
    # The Hub finds only these two by their names.
    files.sort(key=lambda name: name not in ("LICENSE", "LICENSE.md"))
    if not files:
        raise UsageError(
            "--license other needs --license-link, because the release contains no file LICENSE",
            "Give the https address of the license's text.",
        )
    if files[0] in ("LICENSE", "LICENSE.md"):
        return files[0]
    if options.repo is None:
        raise UsageError(f"--license other needs --repo, to link to {files[0]}", "Or give its address: --license-link.")
    return f"https://huggingface.co/{options.repo}/blob/main/{quote(files[0])}"


def _warnings(metadata: CardMetadata, evidence: CardEvidence) -> list[str]:
    found = []
    if metadata.license is None:
        found.append("the card does not name a license; add one with --license")
    if metadata.base_model is None:
        found.append("the card does not name a base model; add one with --base-model")
    if evidence.other_sweep:
        found.append(f"the sweep is left out: {evidence.other_sweep}")
    return [*found, *evidence.contradictions]


def _check_metadata(root: Path, text: str, files: Collection[str]) -> tuple[str, ...]:
    """Refuse a card whose front matter is wrong, and return what its author should know."""
    found = check_metadata(text, files)
    if found.errors:
        raise ReleaseError(f"{root / CARD_NAME}: {first_few(found.errors)}", "Correct it and try again.")
    return found.warnings


def _keep_edited_card(release: CardRelease, text: str) -> None:
    """Refuse to replace a card that was written by hand."""
    card = release.root / CARD_NAME
    if not card.exists():
        return
    listed = release.manifest.files.get(CARD_NAME)
    present = card.read_bytes()
    if present != text.encode() and (listed is None or describe_file(CARD_NAME, present).sha256 != listed.sha256):
        raise ReleaseError(
            f"{card}: was written by hand, and would be lost",
            "Keep it and list it with --adopt, or move it away and run the command again.",
        )


def _write(release: CardRelease, contents: Mapping[str, bytes], *, verified: bool, repository: str | None) -> None:
    """Write files into the release, remove those of an earlier card, and list what is there."""
    root = release.root
    for name in sorted(contents):
        file = root / name
        folder = folder_inside(root, str(Path(name).parent)) if "/" in name else root
        folder.mkdir(parents=True, exist_ok=True)
        if not (file.is_file() and not file.is_symlink() and file.read_bytes() == contents[name]):
            replace_file(file, contents[name])
    for name in release.added:
        if name not in contents and folder_inside(root, str(Path(name).parent)).is_dir():
            (root / name).unlink(missing_ok=True)
    files = [describe_file(name, content) for name, content in contents.items()]
    manifest = release.manifest.with_card(files, repository=repository, verified=verified)
    replace_file(root / MANIFEST_NAME, manifest.encode())
