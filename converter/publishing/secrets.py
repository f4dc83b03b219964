"""Secrets in files that are about to be published: found by their form, named by their kind, never repeated."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Kinds of secrets that have a form of their own, by the prefixes that their issuers document.
_PATTERNS = {
    "a Hugging Face token": rb"(?<![A-Za-z0-9_])(?:hf|api_org)_[A-Za-z0-9]{30,}",
    "an AWS access key": rb"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])",
    "a GitHub token": rb"(?<![A-Za-z0-9_])(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})",
    "a GitLab token": rb"(?<![A-Za-z0-9_-])glpat-[A-Za-z0-9_-]{20,}",
    "a Google API key": rb"(?<![A-Za-z0-9_-])AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])",
    "a Slack token": rb"(?<![A-Za-z0-9-])xox[abeoprs]-[A-Za-z0-9-]{20,}",
    "an OpenAI or Anthropic key": rb"(?<![A-Za-z0-9_-])sk-(?:ant-|proj-|svcacct-)?[A-Za-z0-9_-]{40,}",
    "a Weights & Biases or PyPI token": rb"(?<![A-Za-z0-9_-])(?:pypi-AgEIcHlwaS5vcmc|wandb_v1_)[A-Za-z0-9_-]{20,}",
    "a private key": rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----",
}
_ANY = re.compile(b"|".join(b"(" + pattern + b")" for pattern in _PATTERNS.values()))
#: Names of variables that hold what nobody should see, with a value that could be one.
_ASSIGNED = re.compile(
    rb"(?i)(?<![a-z0-9])(?:hf_token|hugging_?face_?hub_?token|api_?key|secret_?key|access_?token|password)"
    rb"[\"']?\s*[:=]\s*[\"']([A-Za-z0-9+/_.-]{20,})[\"']"
)


def find_secrets(content: bytes, known: tuple[str, ...] = ()) -> Iterator[tuple[str, int]]:
    """Secrets in a file: their kind, and the line they stand on.

    Args:
        content: of the file.
        known: secrets that are in use and must not be in any file, such as the user's own token.
    """
    for match in _ANY.finditer(content):
        yield list(_PATTERNS)[(match.lastindex or 1) - 1], _line(content, match.start())
    for match in _ASSIGNED.finditer(content):
        # A word or a path is no secret; what was drawn at random has digits among its letters.
        value = match[1]
        if re.search(rb"[0-9]", value) and re.search(rb"[A-Za-z]", value) and b"/" not in value:
            yield "what looks like a secret", _line(content, match.start())
    for secret in known:
        place = content.find(secret.encode())
        if secret and place >= 0:
            yield "the token that is in use", _line(content, place)


def _line(content: bytes, place: int) -> int:
    return content.count(b"\n", 0, place) + 1
