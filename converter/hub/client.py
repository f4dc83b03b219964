"""Settings of huggingface_hub and hf_xet while lensconv uses them: no output, and a time limit."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from converter.hub.proxies import without_socks
from converter.hub.retry import LONGEST_WAIT, TRANSIENT_STATUSES, asked_seconds

#: The variable with the file for the log of hf_xet.
_XET_LOG = "HF_XET_LOG_DEST"
#: The variable with the time that hf_xet waits for an answer; by default three times two minutes.
_XET_TIMEOUT = "HF_XET_CLIENT_READ_TIMEOUT"


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence the client: only errors in its log, no bars, no warnings. Afterwards, all settings are as before.

    If hf_xet cannot write its log, it writes to stdout. So it gets no log, unless the user has named a file.
    """
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import progress_bar_states

    verbosity, bars = hub_logging.get_verbosity(), dict(progress_bar_states)
    with warnings.catch_warnings(), _variable_unless_set(_XET_LOG, os.devnull):
        warnings.simplefilter("ignore")
        hub_logging.set_verbosity(logging.ERROR)
        progress_bar_states.clear()
        progress_bar_states["_global"] = False
        try:
            _open_client()
            yield
        finally:
            hub_logging.set_verbosity(verbosity)
            progress_bar_states.clear()
            progress_bar_states.update(bars)


@contextmanager
def bounded_hub(seconds: float) -> Iterator[None]:
    """Limit the time that the client waits. Afterwards, all settings are as before.

    By default, it waits for an answer without a limit, and some of its calls sleep as long as a server asks for. Here,
    such an answer raises an exception, so that the limits of ``Retry`` apply.

    Args:
        seconds: limit for an answer, and for sending a chunk.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http, hf_raise_for_status  # type: ignore[attr-defined]

    def refuse_long_waits(response: Any) -> None:
        if response.status_code in TRANSIENT_STATUSES and (asked_seconds(response) or 0.0) > LONGEST_WAIT:
            hf_raise_for_status(response)

    # A program may have set its own factory, and no public function returns it.
    factory = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)

    def make() -> Any:
        client = factory()
        client.timeout = seconds
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "response": [*hooks["response"], refuse_long_waits]}
        return client

    set_client_factory(make)
    try:
        with _variable_unless_set(_XET_TIMEOUT, f"{max(1, round(seconds))}s"):
            _open_client()
            yield
    finally:
        set_client_factory(factory)


def _open_client() -> None:
    """Make the client now if a SOCKS proxy would prevent it, although no request to the Hub goes through it."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    with without_socks() as has_hidden:
        if has_hidden:
            get_session()


@contextmanager
def _variable_unless_set(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment during a block; a value that the user has set stays."""
    is_set = name in os.environ
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if not is_set:
            os.environ.pop(name, None)
