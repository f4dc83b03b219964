"""Headless Chromium, and a site on loopback for it that notes whatever is asked of it."""

from __future__ import annotations

import html
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import run_program
from tests.serving import serving

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_CHROMIUM = next((found for found in map(shutil.which, _NAMES) if found), None)
needs_browser = pytest.mark.skipif(_CHROMIUM is None, reason=f"none of {', '.join(_NAMES)} is installed")
#: Nothing but the page is to be fetched, and nothing of the machine's own profile to be touched.
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@dataclass
class Site:
    """Pages by path, which is a word, and what was asked for."""

    pages: Mapping[str, str]
    port: int = 0
    asked: list[str] = field(default_factory=list)
    """Hosts and paths of requests, and ``not HTTP`` for what is none, such as the beginning of TLS."""


@contextmanager
def running_site(pages: Mapping[str, str]) -> Iterator[Site]:
    """Serve pages until the block ends."""
    site = Site(pages)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = unquote(urlsplit(self.path).path).strip("/")
            host = self.headers.get("Host", "").partition(":")[0]
            site.asked.append(f"{host}/{name}")
            page = site.pages.get(name)
            content = (page or "").encode()
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002, ARG002 - as its base
            if format.startswith("code "):
                site.asked.append("not HTTP")

    with serving(Handler) as address:
        site.port = int(address.rpartition(":")[2])
        yield site


def look_at(site: Site, program: str, *, width: int = 1280, height: int = 1000) -> Any:
    """Open all pages of a site side by side in one browser, each in a frame of that size, and ask them.

    The program is JavaScript: the body of a function of ``page``, a document, and ``frame``, its window. What the
    function gives is returned by page.
    """
    frames = "".join(f'<iframe id="{name}" src="/{name}"></iframe>' for name in site.pages)
    style = f"iframe {{ width: {width}px; height: {height}px; border: 0 }}"
    probe = (
        f"<!doctype html><meta charset=utf-8><style>{style}</style>{frames}"
        "<pre id=found></pre><script>addEventListener('load', () => { const found = {};"
        "for (const element of document.querySelectorAll('iframe')) {"
        f"found[element.id] = ((page, frame) => {{{program}}})(element.contentDocument, element.contentWindow); }}"
        "document.querySelector('pre').textContent = JSON.stringify(found); });</script>"
    )
    site.pages = {**site.pages, "probe": probe}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Every name of a host leads to the site, so that it sees what a page asks of others; names of the browser's own
        # services lead nowhere.
        hosts = f"--host-resolver-rules=MAP *.example 127.0.0.1:{site.port}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        options = (*_OPTIONS, f"--user-data-dir={profile}", hosts, f"--window-size={width},{height}", "--dump-dom")
        done = run_program(_CHROMIUM, *options, f"http://127.0.0.1:{site.port}/probe", cwd=profile, timeout=60)
    assert done.returncode == 0, done.stderr
    text = done.stdout.rpartition('<pre id="found">')[2].partition("</pre>")[0]
    assert text, f"the probe did not run: {done.stdout[:500]}"
    return json.loads(html.unescape(text))
