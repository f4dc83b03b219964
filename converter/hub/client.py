"""What huggingface_hub and hf_xet are kept from while lensconv uses them: talking, and waiting without end."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from converter.hub.retry import LONGEST_WAIT, TRANSIENT_STATUSES, asked_seconds

#: The variable that says where hf_xet writes its log.
_XET_LOG = "HF_XET_LOG_DEST"
#: The variable that says how long hf_xet waits for an answer; three times two minutes by itself.
_XET_TIMEOUT = "HF_XET_CLIENT_READ_TIMEOUT"


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the client from talking: its log at errors only, no bars, no warnings. Afterwards all is as it was.

    hf_xet, where it cannot write its log, writes it to stdout: it gets none, unless the user has said where it goes.
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
            yield
        finally:
            hub_logging.set_verbosity(verbosity)
            progress_bar_states.clear()
            progress_bar_states.update(bars)


@contextmanager
def bounded_hub(seconds: float) -> Iterator[None]:
    """Keep the client from waiting without end. Afterwards all is as it was.

    By itself it waits for an answer for ever, and some of its calls sleep for as long as a server asks for. Here such a
    server is refused, so that it meets the bounds of ``Retry``.

    Args:
        seconds: to wait for an answer, or for the network to take a piece of what is sent.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http, hf_raise_for_status  # type: ignore[attr-defined]

    def refuse_long_waits(response: Any) -> None:
        if response.status_code in TRANSIENT_STATUSES and (asked_seconds(response) or 0.0) > LONGEST_WAIT:
            response.read()
            hf_raise_for_status(response)

    # The user's own, where a program has set one; there is no public way to ask for it.
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
            yield
    finally:
        set_client_factory(factory)


@contextmanager
def _variable_unless_set(name: str, value: str) -> Iterator[None]:
    """A variable of the environment for as long as a block runs; what the user has set stays."""
    is_set = name in os.environ
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if not is_set:
            os.environ.pop(name, None)
