"""Which files in a folder no loader reads, decided by their paths alone."""

from __future__ import annotations

#: Files and folders that file managers and editors make by themselves.
_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX", "__pycache__", ".ipynb_checkpoints")
#: How macOS names the files in which it keeps attributes on foreign file systems.
_APPLE_DOUBLE = "._"
#: Where the client of the Hub keeps its records of downloads.
DOWNLOAD_RECORDS = ".cache/huggingface"
#: Ends of the names of locks, of unfinished downloads (by the Hub's client, browsers, curl and aria2) and of backups.
_UNREAD = (".lock", ".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".tmp", ".bak", "~")


def is_ignored(path: str) -> bool:
    """Whether no loader reads a file: it is hidden or in a hidden folder, unfinished, a lock, a backup or litter.

    Args:
        path: inside a checkpoint, with slashes.
    """
    return "/." in f"/{path}" or path.endswith(_UNREAD) or is_litter(path)


def is_litter(path: str) -> bool:
    """Whether a program made a file or folder for itself, so that it may be deleted.

    Args:
        path: inside a checkpoint, with slashes.
    """
    is_record = f"/{DOWNLOAD_RECORDS}/" in f"/{path}/"
    return is_record or any(part in _LITTER or part.startswith(_APPLE_DOUBLE) for part in path.split("/"))
