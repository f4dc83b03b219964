"""A file of a repo that is read in order, over a connection that is opened again when it breaks."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack

from converter.console import SILENT, Reporter
from converter.errors import HubError
from converter.hub.failures import LATER_HINT, answered_status, client_errors, deciding, hub_failure
from converter.hub.hosts import file_host
from converter.hub.requests import Requests
from converter.hub.retry import FIRST_WAIT, is_transient

#: Answers without a further byte, one after the other, after which a file that is read in order counts as broken.
MAXIMUM_USELESS_ANSWERS = 8


class FileStream:
    """A file from a byte to its end, in order. A connection that breaks is opened again where it broke.

    Args:
        requests: requests the bytes.
        where: the file, for messages.
        route: its path on the Hub.
        start: the first byte.
        size: bytes of the whole file.
        reporter: is told if the server ignores ranges.
    """

    def __init__(
        self, requests: Requests, where: str, route: str, start: int, size: int, reporter: Reporter = SILENT
    ) -> None:
        self._requests = requests
        self._where = where
        self._route = route
        self._size = size
        self._reporter = reporter
        self.position = start
        """The next byte."""
        self._received = start
        self._rest = memoryview(b"")
        self._chunks = self._receive()

    def read_into(self, target: memoryview) -> None:
        """Fill memory with the next bytes, of which there must be enough.

        Raises:
            HubError: the Hub refuses, or has not sent a further byte for a while.
        """
        while target:
            if not self._rest:
                self._rest = memoryview(next(self._chunks))
            count = min(len(target), len(self._rest))
            target[:count] = self._rest[:count]
            target, self._rest = target[count:], self._rest[count:]
            self.position += count

    def close(self) -> None:
        """Close the connection."""
        self._chunks.close()

    def __enter__(self) -> FileStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> Generator[bytes, None, None]:
        useless = 0
        while self._received < self._size:
            before = self._received
            with ExitStack() as stack:
                chunks = self._requests.call(self._where, lambda: self._open(stack))
                try:
                    for chunk in chunks:
                        self._received += len(chunk)
                        yield chunk
                except client_errors() as error:
                    if not is_transient(error) or self._requests.stopping.is_set():
                        raise hub_failure(self._where, error) from error
            # The client raises nothing for an answer that ends early and has not given its length.
            useless = 0 if self._received > before else useless + 1
            if useless == MAXIMUM_USELESS_ANSWERS:
                reason = f"{self._received} of {self._size} bytes were received, and no more come"
                raise HubError(f"{self._where}: {reason}", LATER_HINT)
            if self._received < self._size:
                self._requests.stopping.wait(FIRST_WAIT * useless)

    def _open(self, stack: ExitStack) -> Iterator[bytes]:
        arguments = self._where, self._route, self._received, self._size, self._size
        try:
            chunks, skipped = stack.enter_context(self._requests.body(*arguments))
        except client_errors() as error:
            # The signature of a redirect may have expired; every request to the Hub gets a new one.
            if answered_status(deciding(error)) != 403 or not file_host(error):
                raise
            chunks, skipped = stack.enter_context(self._requests.body(*arguments))
        if skipped:
            self._reporter.note(f"Note: {self._where}: the server ignores ranges; the file is read from its beginning.")
        return chunks
