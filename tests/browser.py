"""Headless Chromium, and a site on loopback for it that notes whatever is asked of it."""

from __future__ import annotations

import base64
import fcntl
import html
import json
import os
import select
import shutil
import subprocess
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
    """Hosts and paths of requests, and ``not HTTP`` for anything else, such as the beginning of TLS."""


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


class Tab:
    """A page in headless Chromium that is used as by a person: with keys, a mouse and fingers.

    Args:
        browser: where it is open.
        session: how the browser calls it.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.requests: list[str] = []
        """Addresses that were asked for, without ``data:`` ones."""
        self.complaints: list[str] = []
        """What the console shows: errors, warnings, what the policy of the page forbids; and dialogs."""
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of Chrome's DevTools protocol."""
        return self._browser.call(method, parameters, self._session)

    def open(self, page: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open an address, and wait until the page and its images are there."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.prefer("prefers-color-scheme", "dark" if dark else "light")
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=page)
        there = (
            "document.readyState === 'complete' && [...document.images].every(i => i.complete || i.loading === 'lazy')"
        )
        self.ask(f"new Promise(done => {{ const wait = () => {there} ? done() : setTimeout(wait, 10); wait(); }})")

    def prefer(self, feature: str, value: str) -> None:
        """Set a preference of the reader."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": feature, "value": value}])

    def ask(self, expression: str) -> Any:
        """Return the value of an expression in JavaScript, once its promise is fulfilled."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press and release keys, by the names of ``KeyboardEvent.key``."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            code = _KEY_CODES.get(key, 0)
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def middle(self, selector: str) -> tuple[float, float]:
        """Return the middle of an element in the window."""
        box = self.ask(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def click(self, selector: str) -> None:
        """Click an element."""
        self.ask(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        self.drag(self.middle(selector))
        # What follows a link comes a moment later.
        self.ask("new Promise(done => setTimeout(done, 20))")

    def drag(self, start: tuple[float, float], *path: tuple[float, float]) -> None:
        """Press the mouse at a point, move it, and release it."""
        for kind, (x, y) in [("mousePressed", start), *(("mouseMoved", point) for point in path)]:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        x, y = path[-1] if path else start
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)

    def touch(self, *steps: list[tuple[float, float]]) -> None:
        """Put fingers on points, move them, and lift them."""
        for number, fingers in enumerate(steps):
            points = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(fingers)]
            self.call("Input.dispatchTouchEvent", type="touchMove" if number else "touchStart", touchPoints=points)
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def picture(self, *, whole: bool = False) -> bytes:
        """Return a PNG of the window, or of the whole page."""
        done = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(done["data"])

    def note(self, method: str, parameters: Mapping[str, Any]) -> None:
        """Note an event."""
        if method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith("data:"):
            self.requests.append(parameters["request"]["url"])
        if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(parameters))
        if method == "Page.javascriptDialogOpening":
            self.complaints.append(json.dumps(parameters))
            self._browser.send("Page.handleJavaScriptDialog", {"accept": False}, self._session)


#: Seconds after which a browser counts as hanging.
_PATIENCE = 30.0
#: Codes of keys without a character, by which Chromium knows what they do.
_KEY_CODES = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9, "Escape": 27, "Enter": 13}


class Browser:
    """Headless Chromium, spoken to by Chrome's DevTools protocol over two pipes."""

    def __init__(self, profile: str) -> None:
        inner_in, outer_in = _high(os.pipe())
        outer_out, inner_out = _high(os.pipe())
        # Chromium reads from its descriptor 3 and writes to 4.
        program = f'exec "$0" "$@" 3<&{inner_in} 4>&{inner_out} 2>/dev/null'
        options = (*_OPTIONS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank")
        self._process = subprocess.Popen(
            ["bash", "-c", program, str(_CHROMIUM), *options], pass_fds=(inner_in, inner_out)
        )
        os.close(inner_in)
        os.close(inner_out)
        self._input, self._output = os.fdopen(outer_in, "wb"), os.fdopen(outer_out, "rb")
        self._number = 0
        self._rest = b""
        self._tabs: dict[str, Tab] = {}

    def new_tab(self) -> Tab:
        """Open a tab."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        self._tabs[session] = Tab(self, session)
        return self._tabs[session]

    def send(self, method: str, parameters: Mapping[str, Any], session: str = "") -> int:
        """Send a message, and return its number."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        self._input.write(json.dumps(message).encode() + b"\0")
        self._input.flush()
        return self._number

    def call(self, method: str, parameters: Mapping[str, Any], session: str = "") -> dict[str, Any]:
        """Send a message, and return its answer; events that come before it are noted."""
        number = self.send(method, parameters, session)
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, (method, message)
                result: dict[str, Any] = message["result"]
                return result
            if message.get("sessionId") in self._tabs and "method" in message:
                self._tabs[message["sessionId"]].note(message["method"], message["params"])

    def close(self) -> None:
        """End the browser."""
        self.send("Browser.close", {})
        self._process.wait(30)
        self._input.close()
        self._output.close()

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._output], [], [], _PATIENCE)
            assert ready, "the browser does not answer"
            part = os.read(self._output.fileno(), 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run a browser until the block ends."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            yield browser
        finally:
            browser.close()


def _high(ends: tuple[int, int]) -> tuple[int, int]:
    """Move both ends of a pipe away from the descriptors that Chromium uses."""
    first, second = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return first, second
