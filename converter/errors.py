"""Every error that lensconv raises on purpose.

Each class has the exit code of the command that it ends. Exit codes are decided only here.

LensconvError               exit 1: what was examined or made is not what it should be
├── InputError               exit 2: what was given is malformed, missing or unsupported
│   ├── UsageError               the command line itself
│   ├── FileError                a file cannot be used; the message names it
│   │   ├── MissingInput             a file or folder does not exist, or cannot be read
│   │   ├── MalformedCheckpoint      a safetensors file, an index or a config breaks its format, or they disagree
│   │   ├── AdapterError             a LoRA adapter is malformed, not supported, or does not fit the model
│   │   ├── CalibrationError         a calibration is malformed, or was gathered with another model
│   │   ├── RecipeError              a recipe is malformed, or names something that the model does not have
│   │   ├── SuiteError               a suite of prompts, or a card that should contain one, is malformed
│   │   └── EvidenceError            a file of measurements has another format, or its figures contradict each other
│   │       └── ScoresError              the scores of a search are malformed, or of other weights or options
│   ├── UnsupportedCheckpoint    well formed, but it cannot be converted or checked
│   ├── NonFiniteWeight          a weight is NaN or infinity
│   └── OutputError              the output exists already, is inside the source, is read-only or in use
├── ResourceError            exit 3: the machine lacks something
│   ├── DiskError                free space
│   ├── MemoryLimitError         memory
│   ├── DeviceError              an accelerator
│   ├── DependencyError          a package
│   │   └── CompilerError            torch's compiler, or a compiler that it calls
│   ├── ClusterError             a cluster of Ray, or nodes of it that can be used
│   └── MissingFigure            a figure that has a threshold, which this command cannot measure
├── HubError                 exit 4: the Hub refuses, lacks something, differs, or cannot be reached
│   ├── CorruptDownload          what it sends is not what it has recorded
│   └── MissingObject            it no longer has a file that was uploaded
├── ReleaseError             exit 1: a release contains what must not be published, or differs from its manifest
├── SolverError              exit 1: no optimum was found, as too many selections are almost as good
├── ImageError               exit 1: the model generated something that is not an image
└── Interrupted              exit 130: Ctrl-C or a termination signal
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import ClassVar

#: Error numbers of a disk, or a share of one, that is full.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
#: Characters of a message or a hint.
MESSAGE_LIMIT = 2000
#: How many problems a check names, and how many files or patterns a note.
NAMED_PROBLEMS = 3
#: Characters of a problem or a note.
TEXT_LIMIT = 500


class LensconvError(Exception):
    """Base of all errors raised on purpose: one line says what is wrong, and one says what to do.

    Args:
        message: what is wrong, with the names of the file and the tensor; without a full stop.
        hint: what to do next, in sentences; empty when the message already says it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = printable(message, MESSAGE_LIMIT)
        super().__init__(self.message)
        self.hint = printable(hint, MESSAGE_LIMIT)

    @property
    def with_hint(self) -> str:
        """The message and the hint, as one line."""
        if not self.hint:
            return self.message
        ends_sentence = self.message.rstrip("\"')").endswith((".", "?", "!", "…"))
        return f"{self.message}{'' if ends_sentence else '.'} {self.hint}"

    def to_dict(self) -> dict[str, dict[str, str]]:
        """Return the object that ``--json`` prints instead of a result."""
        return {"error": {"type": type(self).__name__, "message": self.message, "hint": self.hint}}

    @classmethod
    def from_dict(cls, content: Mapping[str, str]) -> LensconvError:
        """Return the error that another process of lensconv reported: ``content`` is ``error`` of its ``to_dict``."""
        kinds = [LensconvError]
        for kind in kinds:
            kinds += kind.__subclasses__()
        kind = next((kind for kind in kinds if kind.__name__ == content["type"]), LensconvError)
        # Some classes build their message from several arguments.
        error = kind.__new__(kind)
        LensconvError.__init__(error, content["message"], content["hint"])
        return error


class InputError(LensconvError):
    """The input cannot be used."""

    exit_code = 2


class UsageError(InputError):
    """The command line is wrong: an option or a value is unknown, or options contradict each other."""


class FileError(InputError):
    """A file cannot be used.

    Args:
        file: the file with the fault, or another text that says where the fault is.
        reason: what is wrong with it.
        hint: what to do next; by default the hint of the class.
        tensor: the tensor with the fault, if there is one.
    """

    default_hint: ClassVar[str] = ""
    file: PurePath | str = ""

    def __init__(
        self, file: PurePath | str, reason: str, hint: str | None = None, *, tensor: str | None = None
    ) -> None:
        self.file = file
        where = printable(str(file))
        if tensor is not None:
            where += f": tensor {printable(tensor)}"
        super().__init__(f"{where}: {reason}", self.default_hint if hint is None else hint)


class MissingInput(FileError):
    """A file or folder does not exist, or cannot be read."""

    default_hint = "Check the path and its permissions."


class MalformedCheckpoint(FileError):
    """A file of a checkpoint breaks its format, or disagrees with another."""

    default_hint = "Download or write the file again, then compare its checksum with the publisher's."


class RecipeError(FileError):
    """A recipe is malformed, or names something that the model does not have."""


class AdapterError(FileError):
    """A LoRA adapter is malformed, of a kind that cannot be added to weights, or does not fit the model."""


class CalibrationError(FileError):
    """A calibration is malformed, or was gathered with another model."""

    default_hint = "Gather it again."


class EvidenceError(FileError):
    """A file of measurements has another format, or its figures contradict each other."""

    default_hint = "Measure again with `lensconv bench`; do not edit the file."


class ScoresError(EvidenceError):
    """The scores of a search are malformed, or of other weights or options."""

    default_hint = "Search again without the scores of this file."


class SuiteError(FileError):
    """A suite of prompts is malformed, or a card contains none that can be read without guessing."""


class UnsupportedCheckpoint(InputError):
    """The checkpoint is well formed, but it cannot be converted or checked."""


class NonFiniteWeight(InputError):
    """A weight contains NaN, infinity, or a value that overflows bfloat16."""


class OutputError(InputError):
    """The output cannot be written to this path."""


class ResourceError(LensconvError):
    """The machine lacks something that the work needs."""

    exit_code = 3


class DiskError(ResourceError):
    """Not enough free space."""


class MemoryLimitError(ResourceError):
    """The allowed memory is not enough."""


class DeviceError(ResourceError):
    """The requested accelerator is not available."""


class DependencyError(ResourceError):
    """A package is missing, or its version does not have what is needed."""


class CompilerError(DependencyError):
    """torch cannot compile a model: it lacks a compiler, or one fails."""


class ClusterError(ResourceError):
    """No cluster of Ray answers, or its nodes cannot be used."""


class MissingFigure(ResourceError):
    """A figure that has a threshold cannot be measured by this command."""


class HubError(LensconvError):
    """The Hub refuses, lacks something, has other contents than expected, or cannot be reached."""

    exit_code = 4


class CorruptDownload(HubError):
    """The bytes of a file are not those of the Hub's record."""


class MissingObject(HubError):
    """The Hub does not have what was uploaded. With new operations, it is uploaded again."""


class ReleaseError(LensconvError):
    """A release contains what must not be published, or differs from its manifest."""


class SolverError(LensconvError):
    """No optimum was found, as too many selections are almost as good."""


class ImageError(LensconvError):
    """The model generated something that is not an image."""


class Interrupted(LensconvError):
    """The user or the system stopped the command."""

    exit_code = 130


def unreadable(file: PurePath | str, error: OSError, hint: str | None = None) -> ResourceError | MissingInput:
    """Return the error for a file that the system does not allow to read."""
    return lacking(error, file) or MissingInput(file, reason_of(error), hint)


def lacking(error: OSError, where: PurePath | str | None = None) -> ResourceError | None:
    """Return the error for what the machine lacks; None if the system has another reason.

    Args:
        error: the system's.
        where: what the message begins with; the file that the system names when None.
    """
    where = error.filename if where is None else where
    message = f"{printable(str(where))}: {reason_of(error)}" if where else reason_of(error)
    if error.errno in FULL_DISK:
        return DiskError(message, "Free some space.")
    if error.errno == errno.ENOMEM:
        return MemoryLimitError(message, "Close other programs.")
    if error.errno == errno.EMFILE:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return ResourceError(message, f"Raise the limit on open files, ulimit -n, above {limit}.")
    if error.errno == errno.ENFILE:
        return ResourceError(message, "Close other programs, or raise the limit on open files, fs.file-max.")
    return None


def reason_of(error: OSError) -> str:
    """Return the system's reason without the path, because messages name the path themselves."""
    return error.strerror or str(error)


def first_line(error: BaseException) -> str:
    """Return what an error of a library says first, safe to show; the name of its class if it says nothing.

    Further lines are code, commands or advice for developers.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0].strip(), TEXT_LIMIT)


def printable(text: str, limit: int = 200) -> str:
    """Make a string from a file safe to show: control characters escaped, one line, at most ``limit`` characters.

    A longer string loses its middle, because names differ at their ends, and messages end with what is wrong.
    """
    safe = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    if len(safe) <= limit:
        return safe
    head = limit // 2
    return f"{safe[:head]}…{safe[len(safe) - (limit - head - 1) :]}"


def first_few(texts: Sequence[str]) -> str:
    """The first of several texts, safe to show, and how many more there are."""
    more = f"; and {len(texts) - NAMED_PROBLEMS} more" if len(texts) > NAMED_PROBLEMS else ""
    return "; ".join(printable(text, TEXT_LIMIT) for text in texts[:NAMED_PROBLEMS]) + more
