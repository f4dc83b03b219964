"""The hosts that serve the contents of files. The Hub redirects to them, and a firewall may block them alone."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from converter.errors import printable

#: What hf_xet raises.
XET_ERRORS = (RuntimeError, ConnectionError)


def file_host(cause: Any) -> str:
    """The host that was asked for the content of a file; empty if it was the Hub itself, or is unknown.

    Args:
        cause: a response of httpx, an exception with a response or a request, or one of hf_xet.
    """
    from huggingface_hub import constants

    # hf_xet has no exception classes of its own; its texts contain the address.
    match = re.search(r"https?://(?:[^\s/@]*@)?([\w.-]+)", str(cause)) if type(cause) in XET_ERRORS else None
    host = match[1] if match else ""
    # An exception without a request raises RuntimeError when it is asked for it.
    with suppress(AttributeError, RuntimeError):
        host = str((getattr(cause, "response", None) or cause).request.url.host)
    return "" if host == urlsplit(constants.ENDPOINT).hostname else printable(host)


def sender(host: str) -> str:
    """Name the server that answers, or does not, for what ``file_host`` found."""
    return f"the Hub's file host {host}" if host else "the Hub"


def allow_hint(host: str) -> str:
    """What to do about a host of files that is blocked."""
    return f"Allow {host} in the firewall and the proxy."
