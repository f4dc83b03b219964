"""A local Hub in a process of its own, for as long as a block runs."""

from __future__ import annotations

import http.client
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from converter.errors import LensconvError, ResourceError, UsageError
from converter.rehearsal.server import check_packages
from converter.rehearsal.settings import DEFAULT_NAME, Account, HubSettings

#: Seconds that a Hub has to stop by itself.
_STOP_SECONDS = 5.0
#: Seconds until an answer to a control request must have come.
_CONTROL_SECONDS = 30.0
#: Variables that would lead a client of the Hub elsewhere, or stop it.
_FOREIGN_VARIABLES = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_TOKEN_PATH",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_CACHE",
    "HF_XET_CACHE",
    "HF_ASSETS_CACHE",
    "HF_HUB_DISABLE_XET",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
)


@dataclass(frozen=True)
class RunningHub:
    """A local Hub that serves."""

    endpoint: str
    settings: HubSettings
    process: subprocess.Popen[str]

    @property
    def account(self) -> Account:
        """The first of its accounts."""
        return self.settings.accounts[0]

    def token(self, name: str = "") -> str:
        """The token of an account; of the first one without a name."""
        return next(account.token for account in self.settings.accounts if name in ("", account.name))

    def environment(
        self, base: Mapping[str, str], home: Path, *, token: str | None = None, xet: bool = True
    ) -> dict[str, str]:
        """Variables with which huggingface_hub speaks to this Hub, and to nothing else.

        Args:
            base: the variables to start from, such as ``os.environ``.
            home: where the client keeps its caches.
            token: what it shows; None for that of the first account, empty for none.
            xet: whether it may use Xet.
        """
        kept = {name: value for name, value in base.items() if name not in _FOREIGN_VARIABLES}
        kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
        own = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": self.account.token if token is None else token,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_XET_TELEMETRY_ENABLED": "0",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        if not xet:
            own["HF_HUB_DISABLE_XET"] = "1"
        return {**kept, **own}

    def fault(self, action: str, **values: Any) -> dict[str, Any]:
        """Set up a fault; see ``converter.rehearsal.faults.Fault`` for what it can be."""
        answer: dict[str, Any] = self._control("POST", "faults", {"action": action, **values})
        return answer

    def clear_faults(self) -> None:
        """Remove all faults that are left."""
        self._control("DELETE", "faults")

    def faults(self) -> list[dict[str, Any]]:
        """Faults that are left."""
        found: list[dict[str, Any]] = self._control("GET", "faults")
        return found

    def requests(self) -> list[dict[str, Any]]:
        """All requests since the log was emptied, oldest first; see ``converter.rehearsal.traffic.Exchange``."""
        found: list[dict[str, Any]] = self._control("GET", "requests")
        return found

    def forget_requests(self) -> None:
        """Empty the log of requests."""
        self._control("DELETE", "requests")

    def bytes_sent(self) -> int:
        """Bytes of the bodies of all answers in the log."""
        return sum(request["sent"] for request in self.requests())

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()
        self.process.wait()

    def _control(self, method: str, what: str, content: object = None) -> Any:
        address = urlsplit(self.endpoint)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_CONTROL_SECONDS)
        try:
            body = b"" if content is None else json.dumps(content).encode()
            headers = {"X-Control-Secret": self.settings.control_secret}
            connection.request(method, f"/_control/{what}", body, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise UsageError(f"the local Hub refuses: {answer.get('error')}")
        return answer


@contextmanager
def running_hub(settings: HubSettings) -> Iterator[RunningHub]:
    """Start a local Hub, and end it with the block, whatever happens.

    Args:
        settings: how it works; it gets an account and a control secret where they lack.

    Raises:
        DependencyError: a package is missing.
        OutputError: the folder cannot be used.
        UsageError: the port is taken.
        ResourceError: the process ends before it serves.
    """
    check_packages()
    settings = replace(
        settings,
        accounts=settings.accounts or (Account.new(DEFAULT_NAME),),
        control_secret=settings.control_secret or secrets.token_hex(16),
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "converter.rehearsal"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C is for the one who started this, who then ends the Hub.
        start_new_session=True,
    )
    try:
        yield RunningHub(_start(process, settings), settings, process)
    finally:
        _stop(process)


def _start(process: subprocess.Popen[str], settings: HubSettings) -> str:
    """Give the process its settings; gives the endpoint once it serves."""
    if process.stdin is None or process.stdout is None:
        raise ResourceError("the local Hub has no streams")
    try:
        process.stdin.write(settings.to_json() + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        raise ResourceError("the local Hub does not start") from None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            break
    try:
        answer = json.loads(text)
    except ValueError:
        raise ResourceError("the local Hub does not start") from None
    if "error" in answer:
        raise LensconvError.from_dict(answer["error"])
    return str(answer["endpoint"])


def _stop(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:
                continue
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    except BaseException:
        process.kill()
        raise
