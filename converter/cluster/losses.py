"""What happens to work on nodes that is not its own fault: it is lost, or stopped."""

from __future__ import annotations

from converter.errors import ClusterError

#: Consecutive losses without any progress, after which something else is wrong.
MOST_LOSSES = 3


class Lost(Exception):
    """A node, or a process of Ray on it, ended while it worked. What it had not finished has to be done again."""


class Stopped(Exception):
    """The work on the cluster was stopped."""


class Losses:
    """Counts losses of what is tried again and again."""

    def __init__(self) -> None:
        self._count = 0

    def note(self, loss: Lost) -> None:
        """Count a loss.

        Raises:
            ClusterError: nothing was achieved since several losses.
        """
        self._count += 1
        if self._count > MOST_LOSSES:
            raise ClusterError(
                f"Ray lost {self._count} processes in a row: {loss}", "See `ray status` and Ray's logs."
            ) from loss

    def reset(self) -> None:
        """Something was achieved."""
        self._count = 0
