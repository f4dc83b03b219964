"""How the Hub keeps a file that is to be uploaded: in git, as an LFS object, or not at all."""

from __future__ import annotations

import codecs

from pathspec import GitIgnoreSpec

#: Larger files, and binary ones, do not go into git: https://huggingface.co/docs/hub/repositories-next-steps
REGULAR_LIMIT = 10 * 2**20
_LFS_PATTERNS = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx "
    "*.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz "
    "*.wasm *.xz *.zip *.zst *tfevents*"
)
#: What huggingface.co writes into .gitattributes of a new repo.
GITATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LFS_PATTERNS.split(" ")
).encode()


def is_lfs(path: str, size: int, sample: bytes, attributes: str) -> bool:
    """Whether a file is kept as an LFS object.

    Args:
        path: its path in the repo.
        size: its bytes.
        sample: its first bytes.
        attributes: .gitattributes of the repo.
    """
    if size == 0:
        return False
    wanted = _wanted_by(attributes, path)
    return wanted if wanted is not None else size > REGULAR_LIMIT or _is_binary(sample)


def is_ignored(path: str, rules: str) -> bool:
    """Whether the rules of a .gitignore leave a file out."""
    return GitIgnoreSpec.from_lines(rules.splitlines()).match_file(path)


def _wanted_by(attributes: str, path: str) -> bool | None:
    """What the last line of .gitattributes that matches a path says about LFS; None if no line does."""
    wanted = None
    for line in attributes.splitlines():
        pattern, *words = line.split() or ["#"]
        # A pattern without a slash is about the name alone. As a rule of .gitignore it would match folders, too.
        subject = path if "/" in pattern else path.rpartition("/")[2]
        filters = [word for word in words if word.startswith("filter=") or word in ("-filter", "!filter")]
        if filters and GitIgnoreSpec.from_lines([pattern]).match_file(subject):
            wanted = filters[-1] == "filter=lfs"
    return wanted


def _is_binary(sample: bytes) -> bool:
    try:
        # The sample may end within a character.
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return True
    return b"\0" in sample
