"""Every error that lensconv raises on purpose.

Each class carries the exit code of the command that it ends; nothing else in the project decides one.

LensconvError               exit 1: what was examined or made is not what it should be
├── InputError               exit 2: what was given is malformed, missing or unsupported
│   ├── UsageError               the command line itself
│   ├── FileError                a file at fault is named
│   │   ├── MissingInput             a file or folder is not there, or cannot be read
│   │   ├── MalformedCheckpoint      a safetensors file, an index or a config breaks its format, or they disagree
│   │   ├── RecipeError              a recipe is malformed, or names nothing in the model
│   │   ├── SuiteError               a suite of prompts, or a card that should hold one, is malformed
│   │   └── EvidenceError            a file of measurements has another format, or its figures contradict each other
│   ├── UnsupportedCheckpoint    well formed, but not something that can be converted or checked
│   ├── NonFiniteWeight          NaN or infinity where a weight should be
│   └── OutputError              the output exists already, lies inside the source, is read-only or in use
├── ResourceError            exit 3: the machine lacks something
│   ├── DiskError                free space
│   ├── MemoryLimitError         memory
│   ├── DeviceError              an accelerator
│   └── DependencyError          a package
├── HubError                 exit 4: the Hub refuses, lacks something, differs, or cannot be reached
│   └── MissingObject            it no longer has a file that was uploaded
├── ReleaseError             exit 1: a release holds what must not be published, or is not what its manifest says
├── ImageError               exit 1: the model drew something that is no image
└── Interrupted              exit 130: Ctrl-C or a termination signal
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import ClassVar

#: Characters of a message or a hint.
MESSAGE_LIMIT = 2000


class LensconvError(Exception):
    """Base of all errors raised on purpose: one line that says what is wrong, and one that says what to do.

    Args:
        message: what is wrong, naming the file and the tensor.
        hint: what to do next; empty when the message already says it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = printable(message, MESSAGE_LIMIT)
        super().__init__(self.message)
        self.hint = printable(hint, MESSAGE_LIMIT)

    def to_dict(self) -> dict[str, dict[str, str]]:
        """The object that ``--json`` prints in place of a result."""
        return {"error": {"type": type(self).__name__, "message": self.message, "hint": self.hint}}

    @classmethod
    def from_dict(cls, content: Mapping[str, str]) -> LensconvError:
        """The error that another process of lensconv has told: what ``error`` holds in the object of ``to_dict``."""
        kinds = [LensconvError]
        for kind in kinds:
            kinds += kind.__subclasses__()
        kind = next((kind for kind in kinds if kind.__name__ == content["type"]), LensconvError)
        # Some of the classes put their message together from parts.
        error = kind.__new__(kind)
        LensconvError.__init__(error, content["message"], content["hint"])
        return error


class InputError(LensconvError):
    """What was given cannot be used."""

    exit_code = 2


class UsageError(InputError):
    """The command line does not make sense."""


class FileError(InputError):
    """A file cannot be used.

    Args:
        file: the file at fault, or whatever else says where the fault is.
        reason: what is wrong with it.
        hint: what to do next; by default what the class says.
        tensor: the tensor at fault, where there is one.
    """

    default_hint: ClassVar[str] = ""

    def __init__(
        self, file: PurePath | str, reason: str, hint: str | None = None, *, tensor: str | None = None
    ) -> None:
        where = printable(str(file))
        if tensor is not None:
            where += f": tensor {printable(tensor)}"
        super().__init__(f"{where}: {reason}", self.default_hint if hint is None else hint)


class MissingInput(FileError):
    """A file or folder is not there, or cannot be read."""

    default_hint = "Check the path and its permissions."


class MalformedCheckpoint(FileError):
    """A file of a checkpoint breaks its format, or disagrees with another."""

    default_hint = "Download or write the file again, then compare its checksum with the publisher's."


class RecipeError(FileError):
    """A recipe is malformed, or names something that the model does not have."""


class EvidenceError(FileError):
    """A file of measurements is not what it should be."""

    default_hint = "Measure again with `lensconv bench`; do not edit it."


class SuiteError(FileError):
    """A suite of prompts is malformed, or a card holds none that can be read without guessing."""


class UnsupportedCheckpoint(InputError):
    """The checkpoint is well formed, but it is not something that can be converted or checked."""


class NonFiniteWeight(InputError):
    """A weight holds NaN, infinity, or a value that overflows bfloat16."""


class OutputError(InputError):
    """The output cannot be written where it was asked for."""


class ResourceError(LensconvError):
    """The machine lacks something that the work needs."""

    exit_code = 3


class DiskError(ResourceError):
    """Not enough free space."""


class MemoryLimitError(ResourceError):
    """The memory that was allowed does not suffice."""


class DeviceError(ResourceError):
    """The accelerator that was asked for is not there."""


class DependencyError(ResourceError):
    """A package is missing, or a version of it cannot do what is asked."""


class HubError(LensconvError):
    """The Hub refuses, lacks what was asked for, holds something else, or cannot be reached."""

    exit_code = 4


class MissingObject(HubError):
    """The Hub does not have what was uploaded; with fresh operations it is uploaded again."""


class ReleaseError(LensconvError):
    """A release holds what must not be published, or is not what its manifest says."""


class ImageError(LensconvError):
    """What the model drew is no image."""


class Interrupted(LensconvError):
    """The user or the system asked the command to stop."""

    exit_code = 130


def unreadable(file: PurePath | str, error: OSError, hint: str | None = None) -> MissingInput:
    """The error for a file that the system does not let us read."""
    return MissingInput(file, reason_of(error), hint)


def reason_of(error: OSError) -> str:
    """What the system says, without the path, which messages name themselves."""
    return error.strerror or str(error)


def printable(text: str, limit: int = 200) -> str:
    """Make a string from a file safe to show: control characters escaped, one line, at most ``limit`` characters.

    What is too long loses its middle: names are told apart by their ends, and messages end with what is wrong.
    """
    safe = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    if len(safe) <= limit:
        return safe
    head = limit // 2
    return f"{safe[:head]}…{safe[len(safe) - (limit - head - 1) :]}"
