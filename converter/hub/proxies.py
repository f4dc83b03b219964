"""Proxies in the environment that the Hub's client cannot use.

The client prepares all of them when it is made, even those that no request will take.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

#: Takes the place of a SOCKS proxy that cannot be used, so that no request passes it by; no host has this name.
_NOWHERE = "http://socks-proxy-needs-the-package-socksio.invalid"


def http_library() -> ModuleType:
    """The library of HTTP that the client is built on: httpx or httpx2, by its version."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    return importlib.import_module(HTTPError.__module__.partition(".")[0])


def malformed_proxy() -> str:
    """The variable of the environment with a proxy of an unknown kind or without an address; empty if there is none."""
    http = http_library()
    for variable, address in _proxies().items():
        try:
            http.Proxy(url=address if "://" in address else f"http://{address}")
        except (ValueError, http.InvalidURL):
            return variable
    return ""


def hub_proxy() -> str:
    """The variable of the environment with the proxy that requests to the Hub take; empty if they take none."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if proxy_bypass(address.hostname or ""):
        return ""
    names = {name.lower(): name for name in _proxies()}
    return names.get(f"{address.scheme}_proxy") or names.get("all_proxy", "")


@contextmanager
def without_socks() -> Iterator[bool]:
    """Hide SOCKS proxies from the client, where it lacks their package and NO_PROXY excludes the Hub from proxies.

    Requests to other hosts fail while they are hidden.

    Yields: whether there are any.
    """
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname or ""
    needless = find_spec("socksio") is None and bool(proxy_bypass(host))
    hidden = {name: value for name, value in _proxies().items() if needless and value.lower().startswith("socks")}
    os.environ.update(dict.fromkeys(hidden, _NOWHERE))
    try:
        yield bool(hidden)
    finally:
        os.environ.update(hidden)


def _proxies() -> dict[str, str]:
    """The proxies that the client uses, by variable."""
    found = getproxies()
    if "*" in (name.strip() for name in found.get("no", "").split(",")):
        return {}
    used = {f"{scheme}_proxy": found[scheme] for scheme in ("http", "https", "all") if found.get(scheme)}
    return {name: value for name, value in os.environ.items() if used.get(name.lower()) == value}
