"""The log of requests: what was asked, what came of it, and how many bytes went either way. Never a token."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

#: Requests that are remembered.
_LIMIT = 100_000


@dataclass
class Exchange:
    """A request and what came of it."""

    method: str
    path: str
    """As it was sent, with its percent-encoding and without the query."""
    query: str
    """The same; signatures are left out."""
    authorized: bool
    """Whether there was an Authorization header."""
    received: int = 0
    """Bytes of the request's body that were read."""
    sent: int = 0
    """Bytes of the answer's body that were sent."""
    status: int = 0
    """0 when the connection was dropped without an answer."""


class Traffic:
    """The last requests, oldest first."""

    def __init__(self) -> None:
        self._exchanges: deque[Exchange] = deque(maxlen=_LIMIT)

    def start(self, method: str, path: str, query: str, authorized: bool) -> Exchange:
        """Note a request; what is known later is filled in later."""
        shown = "&".join(part for part in query.split("&") if part and not part.startswith("signature="))
        exchange = Exchange(method, path, shown, authorized)
        self._exchanges.append(exchange)
        return exchange

    def to_list(self) -> list[dict[str, Any]]:
        """All that is remembered."""
        return [asdict(exchange) for exchange in self._exchanges]

    def clear(self) -> None:
        """Forget it."""
        self._exchanges.clear()
