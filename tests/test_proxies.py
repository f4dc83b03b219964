"""Proxies that the Hub's client cannot use, and packages that are missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from huggingface_hub import close_session

from converter.cli.main import run
from converter.console import Console
from converter.errors import DependencyError
from converter.hub.failures import hub_failure
from converter.hub.proxies import http_library, malformed_proxy, without_socks
from converter.libraries import missing_package
from tests.conftest import Lensconv
from tests.loopback import PLACE, TOKEN, Handler, LoopbackHub
from tests.serving import serving

SOCKS = "socks5://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave out what the machine says about proxies and the Hub; the client, which has read it, begins anew."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("converter.hub.retry.FIRST_WAIT", 0.001)
    close_session()
    yield
    close_session()


@pytest.fixture
def hub(tiny_release: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub that has a release."""
    found = LoopbackHub(tiny_release)
    with serving(type("HubHandler", (Handler,), {"hub": found})) as found.url:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.url)
        yield found


@pytest.mark.skipif(find_spec("socksio") is not None, reason="the package that SOCKS proxies need is installed")
def test_a_socks_proxy_without_its_package(
    hub: LoopbackHub, lensconv: Lensconv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", SOCKS)
    for command in ("verify", "plan"):
        done = lensconv(command, PLACE, "--json")
        error = done.result["error"]
        assert (done.code, error["type"]) == (3, "DependencyError")
        assert error["message"].startswith(
            f"{PLACE}: the Hub's client lacks a package: Using SOCKS proxy, but the 'socksio'"
        )
        assert error["hint"] == "pip install --upgrade socksio"
    assert not hub.seen
    # The Hub needs no proxy; a host that needs one is not asked without it.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    done = lensconv("verify", PLACE)
    assert done.code == 4
    assert {host.partition(":")[0] for host, _, _ in hub.seen} == {"127.0.0.1"}
    close_session()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    done = lensconv("verify", PLACE, "--json")
    assert (done.code, done.result["ok"]) == (0, True)


@pytest.mark.parametrize(
    ("variable", "proxy"),
    [
        ("ALL_PROXY", "foo://127.0.0.1:9"),
        ("HTTPS_PROXY", "http://127.0.0.1:port"),
        ("https_proxy", "http://[::1"),
        ("HTTP_PROXY", "socks4://127.0.0.1:9"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(
    variable: str, proxy: str, lensconv: Lensconv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy)
    error = lensconv("verify", PLACE, "--json").result["error"]
    assert error["message"] == f"{PLACE}: the Hub's client cannot use the proxy in {variable}"
    assert variable in error["hint"]
    monkeypatch.setenv("NO_PROXY", "*")
    assert malformed_proxy() == ""


@pytest.mark.parametrize(
    ("variable", "proxy"), [("ALL_PROXY", "http://user:word@127.0.0.1:9"), ("http_proxy", "x.invalid")]
)
def test_a_proxy_that_does_not_answer_is_named(
    variable: str, proxy: str, hub: LoopbackHub, lensconv: Lensconv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy)
    done = lensconv("verify", PLACE, "--json")
    assert done.code == 4
    assert done.result["error"]["message"].startswith(f"{PLACE}: the proxy in {variable} cannot be reached: it")
    assert variable in done.result["error"]["hint"]
    slow = hub_failure(PLACE, http_library().ConnectTimeout("slow"))
    assert slow.message == f"{PLACE}: the proxy in {variable} cannot be reached: it does not answer in time"
    # A Hub that is not asked through the proxy is to blame itself.
    close_session()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    error = lensconv("verify", PLACE, "--json").result["error"]
    assert error["message"] == f"{PLACE}: the Hub cannot be reached: it refuses the connection"
    assert not hub.seen


def test_usable_proxies_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, proxy in (("HTTPS_PROXY", "127.0.0.1:9"), ("ALL_PROXY", "http://user:word@host:1/")):
        monkeypatch.setenv(variable, proxy)
    monkeypatch.setenv("NO_PROXY", "huggingface.co")
    assert malformed_proxy() == ""
    before = dict(os.environ)
    with without_socks() as hidden:
        assert not hidden
        assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (ModuleNotFoundError("No module named 'PIL'", name="PIL"), "pillow"),
        (ModuleNotFoundError("No module named 'google.protobuf'", name="google.protobuf"), "protobuf"),
        (ModuleNotFoundError("No module named 'a.b'", name="a.b"), "a"),
        (
            ImportError("SOCKS needs the 'socksio' package. Use `pip install httpx[socks]`."),
            "socksio",
        ),
        (
            ImportError("\nX requires the SentencePiece library but it was not found."),
            "sentencepiece",
        ),
        (ImportError("requires Accelerate: `pip install 'accelerate>=0.26.0'`"), "accelerate"),
        (
            ImportError("`tiktoken` is required. Install it with `pip install tiktoken`."),
            "tiktoken",
        ),
        (ImportError("Fast download is enabled but 'hf_transfer' package is not available."), "hf_transfer"),
        (ImportError("libGL.so.1: cannot open shared object file"), ""),
    ],
)
def test_missing_packages_are_named(error: ImportError, package: str) -> None:
    failure = missing_package("x", error)
    assert isinstance(failure, DependencyError)
    assert failure.message == f"x: {' '.join(str(error).split())}"
    assert failure.hint == (f"pip install --upgrade {package}" if package else "Install what is missing.")


def test_an_import_that_fails_anywhere_ends_a_command_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # None makes the import fail as a missing package does.
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run(["verify", PLACE], Console(as_json=True)) == 3
    assert "pip install --upgrade huggingface_hub" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "converter.hub.shadow", None)
    with pytest.raises(ImportError, match="converter"):
        run(["verify", PLACE], Console(as_json=True))


@pytest.mark.skipif(find_spec("tiktoken") is not None, reason="the package is installed")
def test_a_package_that_transformers_hides_is_named() -> None:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    from converter.measurement.generation.loading import blaming

    with pytest.raises(DependencyError, match=r"^tokenizer: cannot be loaded: ") as caught, blaming(Path("tokenizer")):
        TikTokenConverter.load_tiktoken_bpe("x")
    assert caught.value.hint == "pip install --upgrade tiktoken"
