"""What becomes of a file that is to be uploaded: kept by git, kept as an LFS object, or ignored."""

from __future__ import annotations

import re

#: Files above this size, and binary ones, do not go into git: https://huggingface.co/docs/hub/repositories-next-steps
REGULAR_LIMIT = 10 * 2**20
#: What the Hub puts into .gitattributes of a new repo.
_LFS_PATTERNS = [
    "*.7z",
    "*.arrow",
    "*.bin",
    "*.bz2",
    "*.ckpt",
    "*.ftz",
    "*.gz",
    "*.h5",
    "*.joblib",
    "*.lfs.*",
    "*.mlmodel",
    "*.model",
    "*.msgpack",
    "*.npy",
    "*.npz",
    "*.onnx",
    "*.ot",
    "*.parquet",
    "*.pb",
    "*.pickle",
    "*.pkl",
    "*.pt",
    "*.pth",
    "*.rar",
    "*.safetensors",
    "saved_model/**/*",
    "*.tar.*",
    "*.tar",
    "*.tflite",
    "*.tgz",
    "*.wasm",
    "*.xz",
    "*.zip",
    "*.zst",
    "*tfevents*",
]
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LFS_PATTERNS).encode()


def is_lfs(path: str, size: int, sample: bytes, attributes: str) -> bool:
    """Whether a file is kept as an LFS object.

    Args:
        path: where it goes.
        size: its bytes.
        sample: its first bytes.
        attributes: .gitattributes of the repo.
    """
    if size == 0:
        return False
    wanted = _wanted_by(attributes, path)
    return wanted if wanted is not None else size > REGULAR_LIMIT or _is_binary(sample)


def is_ignored(path: str, rules: str) -> bool:
    """Whether a .gitignore says to leave a file, or a folder that it is in."""
    parts = path.split("/")
    return any(
        _ignores(rules, "/".join(parts[:count]), is_folder=count < len(parts)) for count in range(1, len(parts) + 1)
    )


def _ignores(rules: str, path: str, *, is_folder: bool) -> bool:
    ignored = False
    for line in rules.splitlines():
        rule = line.rstrip()
        if not rule or rule.startswith("#"):
            continue
        negated, rule = rule.startswith("!"), rule.removeprefix("!")
        if rule.endswith("/") and not is_folder:
            continue
        if _matches(rule.rstrip("/"), path):
            ignored = not negated
    return ignored


def _wanted_by(attributes: str, path: str) -> bool | None:
    """What the last line of .gitattributes that matches a path says about it."""
    wanted = None
    for line in attributes.splitlines():
        words = line.split()
        if len(words) < 2 or line.startswith("#") or not _matches(words[0], path):
            continue
        for word in words[1:]:
            if word.startswith("filter="):
                wanted = word == "filter=lfs"
            elif word in ("-filter", "!filter"):
                wanted = False
    return wanted


def _is_binary(sample: bytes) -> bool:
    if b"\0" in sample:
        return True
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        # The sample may end within a character.
        return error.start < len(sample) - 3
    return False


def _matches(pattern: str, path: str) -> bool:
    """Whether a pattern of git matches a path: without a slash in it, any part of the path at its end counts."""
    if "/" not in pattern:
        return re.fullmatch(_expression(pattern), path.rpartition("/")[2]) is not None
    return re.fullmatch(_expression(pattern.removeprefix("/")), path) is not None


def _expression(pattern: str) -> str:
    """The regular expression for a pattern of git."""
    expression, position = "", 0
    while position < len(pattern):
        if pattern.startswith("**/", position):
            expression += "(?:[^/]+/)*"
            position += 3
        elif pattern.startswith("**", position):
            expression += ".*"
            position += 2
        elif (match := re.compile(r"\[!?[^\]/]+\]").match(pattern, position)) is not None:
            inner = match[0][1:-1]
            expression += f"[{'^' if inner.startswith('!') else ''}{re.escape(inner.removeprefix('!'))}]".replace(
                r"\-", "-"
            )
            position = match.end()
        else:
            expression += {"*": "[^/]*", "?": "[^/]"}.get(pattern[position], re.escape(pattern[position]))
            position += 1
    return expression
