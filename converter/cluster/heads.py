"""Whether the head of a cluster is there; Ray itself waits for minutes, and then ends the process."""

from __future__ import annotations

import socket

#: Seconds in which a head accepts a connection, and answers.
ANSWERING = 10.0


def touch(address: str) -> None:
    """Connect to a head, and disconnect.

    Args:
        address: ``HOST:PORT``.

    Raises:
        OSError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), ANSWERING).close()
