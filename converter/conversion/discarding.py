"""What is done with unfinished work when a conversion fails: it is kept if the next run can use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from converter.checkpoint.staging import Staging
from converter.console import Reporter
from converter.errors import (
    CalibrationError,
    ClusterError,
    CorruptDownload,
    DeviceError,
    HubError,
    InputError,
    MalformedCheckpoint,
    NonFiniteWeight,
    RecipeError,
    ResourceError,
    UnsupportedCheckpoint,
)


@contextmanager
def discarding(staging: Staging, reporter: Reporter, *, keeps: Callable[[], bool]) -> Iterator[None]:
    """Remove all output when the work fails, unless the next run can continue it.

    A bad source stays bad, so what was made from it is useless. An unreadable disk, a taken output or a shortage
    may pass: then what is finished is kept. But if the first run lacks disk space or memory, it frees what it has used.

    Args:
        staging: where the output grows.
        reporter: is told what is kept.
        keeps: whether there is enough to keep it even then.
    """
    try:
        yield
    except (
        CalibrationError,
        CorruptDownload,
        MalformedCheckpoint,
        NonFiniteWeight,
        RecipeError,
        UnsupportedCheckpoint,
    ):
        staging.discard()
        raise
    except (HubError, InputError, ResourceError) as error:
        if isinstance(error, ResourceError) and not (keeps() or isinstance(error, ClusterError | DeviceError)):
            staging.discard()
        else:
            reporter.note(f"What is finished is kept in {staging.folder.name}; the same command continues from there.")
        raise
