"""A local Hub in a process of its own, which runs as long as a block does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from converter.errors import LensconvError, ResourceError
from converter.extras import require_extra
from converter.rehearsal.settings import DEFAULT_NAME, Account, HubSettings

#: Seconds that a Hub gets to stop by itself.
_STOP_SECONDS = 5.0
#: Beginnings of variables that could lead a client to another Hub, or stop it.
_FOREIGN_VARIABLES = ("HF_", "HUGGING_FACE_", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class RunningHub:
    """A local Hub that is serving."""

    endpoint: str
    settings: HubSettings
    process: subprocess.Popen[str]

    @property
    def account(self) -> Account:
        """The first of its accounts."""
        return self.settings.accounts[0]

    def token(self, name: str = "") -> str:
        """Return the token of an account; by default of the first one."""
        return next(account.token for account in self.settings.accounts if name in ("", account.name))

    def environment(
        self, base: Mapping[str, str], home: Path, *, token: str | None = None, xet: bool = True
    ) -> dict[str, str]:
        """Return environment variables that make huggingface_hub use this Hub alone.

        Args:
            base: the variables to start from, such as ``os.environ``.
            home: folder of the client's caches.
            token: the client's token; None for that of the first account, empty for none.
            xet: whether it may use Xet.
        """
        kept = {
            name: value
            for name, value in base.items()
            if not name.startswith(_FOREIGN_VARIABLES) and not name.lower().endswith("_proxy")
        }
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

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running_hub(settings: HubSettings, module: str = "converter.rehearsal.server") -> Iterator[RunningHub]:
    """Start a local Hub, and stop it at the end of the block.

    Args:
        settings: how it works; without accounts it gets one.
        module: what Python runs as its process.

    Raises:
        DependencyError: a package is missing.
        OutputError: the folder cannot be used.
        UsageError: the port is taken.
        ResourceError: the process ends before it serves.
    """
    require_extra("rehearsal")
    settings = replace(settings, accounts=settings.accounts or (Account.new(DEFAULT_NAME),))
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C stops the program that started this, and that stops the Hub.
        start_new_session=True,
    )
    try:
        yield RunningHub(_start(process, settings), settings, process)
    finally:
        _stop(process)


def _start(process: subprocess.Popen[str], settings: HubSettings) -> str:
    """Give the process its settings; return the endpoint once it serves."""
    text = ""
    if process.stdin is not None and process.stdout is not None:
        with suppress(BrokenPipeError):
            process.stdin.write(settings.to_json() + "\n")
            process.stdin.flush()
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
            with suppress(BrokenPipeError):
                stream.close()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    except BaseException:
        process.kill()
        raise
