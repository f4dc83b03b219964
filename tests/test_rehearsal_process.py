"""The process of the local Hub: how it starts, stops and crashes."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from converter.errors import DependencyError, OutputError, ResourceError, UsageError
from converter.extras import require_extra
from converter.rehearsal.process import RunningHub, running_hub
from converter.rehearsal.settings import Account, HubSettings
from tests.conftest import ROOT, command, run_python
from tests.expected import check_expected
from tests.forms import accepted
from tests.hubs import ask, commit, get_file, head, lfs_file, make_repo, small_hub, upload


def test_state_survives_a_crash(tmp_path: Path) -> None:
    settings = small_hub(tmp_path / "hub")
    content = bytes(range(256)) * 1000
    with running_hub(settings) as first:
        repo = make_repo(first, "kept", visibility="private")
        sha256 = upload(first, repo, content)
        made = commit(first, repo, {"a.txt": b"a"}, lfs_file("a.bin", content)).content["commitOid"]
        ask(first, "POST", f"/api/models/{repo}/tag/main", {"tag": "v1"})
        with pytest.raises(OutputError, match="state of the Hub"), running_hub(settings):
            pass
        # An upload is on its way when the process ends.
        connection = http.client.HTTPConnection(first.endpoint.removeprefix("http://"))
        connection.putrequest("POST", f"/api/models/{repo}/commit/main")
        for header in (("Authorization", f"Bearer {first.token()}"), ("Content-Length", "1000000")):
            connection.putheader(*header)
        connection.endheaders(b'{"key": "header", "value": {"summary": "Half"}}\n')
        first.kill()
        connection.close()
    text = b"".join(path.read_bytes() for path in (tmp_path / "hub").rglob("*") if path.is_file())
    assert not any(account.token.encode() in text for account in settings.accounts)
    with running_hub(settings) as second:
        assert head(second, repo) == head(second, repo, "v1") == made
        assert second.endpoint != first.endpoint
        assert get_file(second, f"/{repo}/resolve/v1/a.bin").body == content
        assert ask(second, "GET", f"/api/models/{repo}", token="").status == 401
        assert upload(second, repo, content) == sha256
        process = second.process
    assert process.returncode == 0


def test_settings_are_sent_to_the_process(tmp_path: Path) -> None:
    defaults = {"accounts": [], "port": 0, "multipart_bytes": 536870912, "part_bytes": 67108864, "page_entries": 1000}
    assert json.loads(HubSettings(tmp_path).to_json()) == {"folder": str(tmp_path), **defaults}
    with pytest.raises(ResourceError, match="the local Hub does not start"), running_hub(HubSettings(tmp_path), "this"):
        pass


def test_the_state_of_another_version_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "hub.sqlite") as connection:
        connection.execute("CREATE TABLE repos (kind TEXT)")
    connection.close()
    with pytest.raises(OutputError, match="not written by this version"), running_hub(HubSettings(tmp_path)):
        pass


def test_clients_are_led_to_this_hub_alone(tmp_path: Path) -> None:
    with subprocess.Popen("true", text=True) as process:
        hub = RunningHub("http://127.0.0.1:1", HubSettings(tmp_path, (Account.new("ann"),)), process)
    base = {"PATH": "/bin", "HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_other", "https_proxy": "http://127.0.0.1:9"}
    base |= {"TRANSFORMERS_OFFLINE": "1", "HUGGING_FACE_HUB_TOKEN": "hf_other", "NO_PROXY": "*"}
    found = hub.environment(base, tmp_path, xet=False)
    own = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token("ann"), "HF_HOME": str(tmp_path)}
    switches = dict.fromkeys(("DISABLE_XET", "DISABLE_TELEMETRY", "DISABLE_PROGRESS_BARS"), "1")
    own |= {f"HF_HUB_{name}": value for name, value in switches.items()} | {"HF_XET_TELEMETRY_ENABLED": "0"}
    assert found == {"PATH": "/bin", "NO_PROXY": "127.0.0.1,localhost", **own}
    assert hub.environment(base, tmp_path, token="")["HF_TOKEN"] == ""


@pytest.mark.parametrize(("kind", "accounts"), [("json", 2), ("text", 2), ("alone", 0)])
def test_serve_says_where_it_is_and_ends_with_ctrl_c(kind: str, accounts: int, tmp_path: Path) -> None:
    as_json = kind == "json"
    options = ("--json", "--folder", os.path.relpath(tmp_path, ROOT)) if as_json else ()
    names = ("--account", "ann:read", "--account", "bo")[: 2 * accounts]
    line, pipe = command("hub", "serve", *names, *options), subprocess.PIPE
    narrow = os.environ | {"COLUMNS": "70"}
    process = subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=narrow)
    stream, last = (process.stdout, "}\n") if as_json else (process.stderr, "Ctrl-C stops it.\n")
    assert stream is not None
    text = ""
    for line_of_text in stream:
        text += line_of_text
        if line_of_text == last:
            break
    (endpoint,) = set(re.findall(r"http://127\.0\.0\.1:\d+", text))
    folder = str(tmp_path) if as_json else text.split("HF_HOME=")[1].split("/home\n")[0]
    token = re.findall(r"hf_[0-9a-f]{34}", text)[0]
    running = RunningHub(endpoint, HubSettings(tmp_path, (Account("ann", token),)), process)
    assert ask(running, "GET", "/api/whoami-v2").content["auth"]["accessToken"]["role"] == (
        "read" if names else "write"
    )
    assert ask(running, "GET", "/_control/requests").status == 404
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (130, "\n" if as_json else "\nerror: interrupted\n")
    assert Path(folder).exists() == as_json
    shown = re.sub(r"hf_[0-9a-f]{34}", "<token>", text).replace(endpoint, "<hub>").replace(folder, "<folder>")
    check_expected(f"hub_serve_{kind}.txt", " ".join(shown.split()) + "\n")
    # Lines for a shell are whole, however narrow the terminal is.
    assert kind != "text" or f"  export HF_TOKEN={token}  # as ann, who can only read\n" in text
    if as_json:
        assert accepted(json.loads(text), "hub") == []


@pytest.mark.parametrize("name", ["api", "a--b", "-a", "a" * 43, "a-", "Datasets", "spaces", "a:admin", "a:"])
def test_accounts_that_are_refused(name: str) -> None:
    assert Account.parse("a" * 42).role == Account.parse("a:write").role == "write"
    for make in (Account.parse, partial(Account.new, "ann", "write")):
        with pytest.raises(UsageError, match=r"not a valid name of an account|not a role of an account"):
            make(name)


def test_the_hub_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, os\nfrom pathlib import Path\nfrom converter.rehearsal.process import running_hub\n"
        "from converter.rehearsal.settings import HubSettings\n"
        "with running_hub(HubSettings(Path(sys.argv[1]))) as hub:\n"
        "    print(hub.process.pid, flush=True)\n    os._exit(9)\n"
    )
    done = run_python(program, tmp_path)
    assert done.returncode == 9, done.stderr
    deadline = time.monotonic() + 10
    while Path("/proc", done.stdout.strip(), "exe").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_taken_port_and_missing_packages_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub(HubSettings(tmp_path / "first")) as hub:
        taken = HubSettings(tmp_path / "second", port=int(hub.endpoint.rpartition(":")[2]))
        with pytest.raises(UsageError, match="Address already in use"), running_hub(taken):
            pass
        # Other machines do not reach it, and Ctrl-C in the terminal of the program that started it does not.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", taken.port))
        assert (os.getsid(hub.process.pid), hub.account.name) == (hub.process.pid, "rehearsal")
        # It ends while a client is connected, and may begin again at once.
        connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"))
        connection.request("GET", "/api/models")
        connection.getresponse().read()
    connection.close()
    with running_hub(taken) as again:
        assert again.endpoint == hub.endpoint
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    needed = "jinja2, lz4, markdown_it, mdit_py_plugins, nh3, pathspec, starlette, uvicorn"
    with pytest.raises(DependencyError, match=f"needs {needed}") as caught, running_hub(HubSettings(tmp_path)):
        pass
    assert "'.[rehearsal]'" in caught.value.hint
    needed = "PIL, jinja2, jsonschema, markdown_it, matplotlib, mdit_py_plugins, nh3, scipy, skimage, tomli_w"
    with pytest.raises(DependencyError, match=f"needs {needed}"):
        require_extra("measure")
