"""Retries of requests to the Hub, for faults that may pass; other faults are raised at once.

huggingface_hub itself retries only some of its calls (not commits, tags, branches, whoami or paths-info), so every
call goes through here.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from converter.console import SILENT, Reporter
from converter.hub.failures import (
    NO_ANSWER,
    answered_status,
    chain,
    class_names,
    client_errors,
    deciding,
    hub_failure,
    is_about_xet_token,
    is_locked,
)
from converter.hub.hosts import file_host, sender

#: Statuses after which another try may succeed, as huggingface_hub 2.4 has them in ``_DEFAULT_RETRY_ON_STATUS_CODES``.
TRANSIENT_STATUSES = (408, 429, 500, 502, 503, 504)
#: Seconds before the second try; doubled for each one after it.
FIRST_WAIT = 1.0
#: Seconds between two tries at most, unless the Hub asks for more.
LONGEST_WAIT = 30.0

T = TypeVar("T")


class Retry:
    """Calls the Hub until it answers, within a time limit and a number of tries.

    Args:
        total_seconds: time limit of one call with all its tries; no try begins later.
        attempts: most tries of one call.
        clock: returns seconds, from any start.
        sleep: waits for this many seconds.
        reporter: shows that it takes longer, and why.
    """

    def __init__(
        self,
        total_seconds: float = 180.0,
        *,
        attempts: int = 8,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        reporter: Reporter = SILENT,
    ) -> None:
        self._total_seconds = total_seconds
        self._attempts = attempts
        self._clock = clock
        self._sleep = sleep
        self._reporter = reporter

    def call(
        self, what: str, function: Callable[[], T], *, is_fatal: Callable[[BaseException], bool] | None = None
    ) -> T:
        """Call a function that asks the Hub for something.

        Args:
            what: what is done or read, for messages.
            function: makes the request; it must be safe to call it again.
            is_fatal: gets the client's exception, and says whether to give up although another try may succeed.

        Raises:
            LensconvError: what ``hub_failure`` makes of the last exception, which is its ``__cause__``.
        """
        deadline = self._clock() + self._total_seconds
        for attempt in range(1, self._attempts + 1):
            try:
                return function()
            except client_errors() as error:
                wait = wait_seconds(error, attempt)
                if (
                    not is_transient(error)
                    or (is_fatal is not None and is_fatal(error))
                    or attempt == self._attempts
                    or self._clock() + wait > deadline
                ):
                    raise hub_failure(what, error) from error
                self._reporter.note(f"{what}: {_told(error)}; trying again in {wait:.0f} s")
            self._sleep(wait)
        raise AssertionError("the last try returns or raises")


def is_transient(error: BaseException) -> bool:
    """Whether another try may succeed after an exception of the Hub's client."""
    error = deciding(error)
    names, text = class_names(error), str(error)
    if "HfHubHTTPError" in names:
        return answered_status(error) in TRANSIENT_STATUSES
    if is_about_xet_token(error):
        # A Hub without Xet will not get it while we wait; one that is busy will answer.
        status = answered_status(error)
        return status in TRANSIENT_STATUSES if status is not None else "timed out" in text.lower()
    is_untrusted = any(isinstance(link, ssl.SSLCertVerificationError) for link in chain(error))
    is_over = is_locked(error) or "cannot schedule new futures" in text
    if is_untrusted or is_over or "OfflineModeIsEnabled" in names:
        return False
    # hf_xet raises builtin classes, not subclasses of them; a proxy may send a page in place of JSON.
    passing = {*NO_ANSWER, "JSONDecodeError", "ConnectionError", "TimeoutError"}
    return bool(names & passing) or type(error) is RuntimeError


def wait_seconds(error: BaseException, attempt: int) -> float:
    """Seconds until another try.

    Args:
        error: an exception of the client.
        attempt: how many tries there have been.
    """
    backoff = min(FIRST_WAIT * 2.0 ** (attempt - 1), LONGEST_WAIT)
    response = getattr(deciding(error), "response", None)
    if response is None:
        return backoff
    asked = asked_seconds(response)
    return backoff if asked is None else max(asked, FIRST_WAIT)


def asked_seconds(response: Any) -> float | None:
    """Seconds that an answer asks the client to wait; None if it does not say."""
    asked = _retry_after(response.headers)
    if asked is None and response.status_code == 429:
        # The draft of RateLimit header fields: "api";r=0;t=55 with the seconds until the window ends.
        match = re.search(r";\s*t\s*=\s*([0-9]{1,9})", response.headers.get("ratelimit", ""))
        asked = float(match[1]) if match else None
    return asked


def _retry_after(headers: Any) -> float | None:
    """Seconds that a server asks for, given as a number or as a date."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", value):
        return float(value)
    until = _seconds(value)
    if until is None:
        return None
    # Counted from the clock of the server, which may differ from ours.
    now = _seconds(headers.get("date", ""))
    return max(0.0, until - (time.time() if now is None else now))


def _seconds(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


def _told(error: BaseException) -> str:
    error = deciding(error)
    status, who = answered_status(error), sender(file_host(error))
    return f"{who} answers {status}" if status is not None else f"{who} does not answer"
