"""Find secrets in files that are about to be published. They are reported by their kind and never shown."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Kinds of secrets that are known by a prefix which their issuer documents. Each pattern begins with the prefix itself
#: and looks back from its end, because Python finds a fixed text far faster than a choice.
_PATTERNS = {
    rb"hf_(?<![A-Za-z0-9_]hf_)(?:[A-Za-z0-9]{30,}|(?:oauth|jwt)_[A-Za-z0-9._-]{30,})": "a Hugging Face token",
    rb"api_org_(?<![A-Za-z0-9_]api_org_)[A-Za-z0-9]{30,}": "a Hugging Face token",
    rb"AKIA(?<![A-Z0-9]AKIA)[A-Z0-9]{16}(?![A-Z0-9])": "an AWS access key",
    rb"ASIA(?<![A-Z0-9]ASIA)[A-Z0-9]{16}(?![A-Z0-9])": "an AWS access key",
    rb"gh[pousr]_(?<![A-Za-z0-9_]gh._)[A-Za-z0-9]{36}": "a GitHub token",
    rb"github_pat_(?<![A-Za-z0-9_]github_pat_)[A-Za-z0-9_]{60,}": "a GitHub token",
    rb"glpat-(?<![A-Za-z0-9_-]glpat-)[A-Za-z0-9_-]{20,}": "a GitLab token",
    rb"AIza(?<![A-Za-z0-9_-]AIza)[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])": "a Google API key",
    rb"xox[abeoprs]-(?<![A-Za-z0-9-]xox.-)[A-Za-z0-9-]{20,}": "a Slack token",
    rb"sk-(?<![A-Za-z0-9_-]sk-)[A-Za-z0-9_-]{40,}": "an OpenAI or Anthropic key",
    rb"pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{20,}": "a PyPI token",
    rb"wandb_v1_[A-Za-z0-9_-]{20,}": "a Weights & Biases token",
    rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----": "a private key",
}
#: Names of variables that hold secrets, with a value that could be one.
_ASSIGNED = re.compile(
    rb"(?i)(?<![a-z0-9])(?:hf_token|hugging_?face_?hub_?token|api_?key|secret_?key|access_?token|password)"
    rb"[\"']?\s*[:=]\s*[\"']([A-Za-z0-9+/_.-]{20,})[\"']"
)


def find_secrets(content: bytes, known: tuple[str, ...] = ()) -> Iterator[tuple[str, int]]:
    """Yield the kind and the line number of each secret in a file.

    Args:
        content: the bytes of the file.
        known: secrets that are in use and must not be in any file, such as the user's own token.
    """
    for pattern, kind in _PATTERNS.items():
        for match in re.finditer(pattern, content):
            yield kind, _line(content, match.start())
    for match in _ASSIGNED.finditer(content):
        # A word or a path is not a secret; random values have digits among their letters.
        value = match[1]
        if re.search(rb"[0-9]", value) and re.search(rb"[A-Za-z]", value) and b"/" not in value:
            yield "what looks like a secret", _line(content, match.start())
    for secret in known:
        position = content.find(secret.encode())
        if secret and position >= 0:
            yield "the token that is in use", _line(content, position)


def _line(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1
