"""Suites of prompts as TOML and back, the command that makes them, and cards from the Hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import HubError, MissingInput, OutputError, SuiteError, UsageError
from converter.measurement.prompts.card import import_card, quoted_texts
from converter.measurement.prompts.checks import LAST_SEED, normalize
from converter.measurement.prompts.fetch import read_card
from converter.measurement.prompts.files import write_suite_file
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt, builtin_suites, parse_suite, read_suite
from tests.cases import check_cases
from tests.conftest import Lensconv, names_in, obey_permissions, run_process, run_python
from tests.forms import accepted
from tests.prompt_cards import SUITE, markdown_card
from tests.serving import Quiet, serving


def edited(**changes: Any) -> str:
    """The TOML of a good suite of two prompts, the second of which is changed; None takes a key out."""
    first = {"id": "P01", "scenario": "One", "seed": 1, "prompt": 'A door, "OPEN".', "required_text": ["OPEN"]}
    second = {**first, "id": "P02", **changes}
    tables = [{key: value for key, value in table.items() if value is not None} for table in (first, second)]
    lines = ['name = "mine"']
    for table in tables:
        lines += ["[[prompts]]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items())]
    return "\n".join(lines)


def test_the_suite_that_ships() -> None:
    assert [suite.name for suite in builtin_suites()] == ["signs", "ten-signs"]
    suite = read_suite("ten-signs")
    assert [prompt.id for prompt in suite.prompts] == [f"P{number:02}" for number in range(1, 11)]
    assert [prompt.seed for prompt in suite.prompts] == list(range(301, 311))
    for prompt in suite.prompts:
        assert prompt.required_text == quoted_texts(prompt.prompt, prompt.id)
        assert 4 <= len(prompt.required_text) <= 6
        assert not re.search("  |\n", prompt.prompt)
    long = {prompt.id: sum(10 <= len(text.split()) <= 25 for text in prompt.required_text) for prompt in suite.prompts}
    assert [name for name, count in long.items() if count >= 3] == ["P04", "P08"]
    assert not any("a" <= letter <= "z" for letter in suite.prompts[5].prompt.lower())
    assert sum(len(prompt.required_text) for prompt in suite.prompts) == 51


WORDS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=30).filter(str.strip)


@st.composite
def suites(draw: st.DrawFn) -> PromptSuite:
    names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
    ids = draw(st.lists(names, min_size=1, max_size=3, unique_by=str.lower))
    prompts = []
    for identifier in ids:
        texts = draw(st.lists(WORDS, max_size=3, unique_by=normalize))
        prompt = draw(WORDS) + "".join(f'\n "{text}"' for text in texts)
        prompts.append(SuitePrompt(identifier, draw(WORDS), draw(st.integers(0, LAST_SEED)), prompt, tuple(texts)))
    return PromptSuite(draw(WORDS), tuple(prompts))


@settings(max_examples=60)
@given(suites())
def test_a_suite_survives_toml(suite: PromptSuite) -> None:
    again = parse_suite(suite.to_toml(), where="made")
    assert (again, again.sha256) == (suite, suite.sha256)


def test_the_hash_changes_with_the_content() -> None:
    assert SUITE.sha256 == PromptSuite("made", SUITE.prompts).sha256
    assert SUITE.sha256.startswith("9dffdf625d5257e1")
    others = (PromptSuite("other", SUITE.prompts), PromptSuite("made", SUITE.prompts[1:]))
    assert len({SUITE.sha256, *(suite.sha256 for suite in others)}) == 3


def test_suites_that_are_refused_and_what_is_just_accepted(tmp_path: Path) -> None:
    """Of TOML, or of a good suite whose second prompt is changed."""

    def outcome(case: str | dict[str, Any]) -> Any:
        text = case if isinstance(case, str) else edited(**case)
        file.write_text(re.sub(r"\{(.)\*(\d+)\}", lambda found: found[1] * int(found[2]), text), "utf-8")
        try:
            prompt = read_suite(str(file)).prompts[-1]
        except SuiteError as error:
            return f"{error.exit_code}: {error.message.removeprefix(f'{file}: ')[:150]}"
        return [prompt.id[:9], prompt.seed, len(prompt.scenario), prompt.prompt[:20], prompt.required_text]

    file = tmp_path / "mine.toml"
    check_cases("suite_cases.jsonl", outcome)


def test_a_lone_surrogate_is_refused_and_so_is_a_long_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SuiteError, match=r"control character U\+D800"):
        PromptSuite("x", (SuitePrompt("P01", "One", 1, "a \ud800", ()),)).check("x")
    for count, reason in ((1000, "is listed twice"), (1001, "has 1001 prompts, more than 1000")):
        with pytest.raises(SuiteError, match=reason):
            PromptSuite("x", SUITE.prompts[:1] * count).check("x")
    write_suite_file("x" * 1_000_000, tmp_path / "x.toml")
    with pytest.raises(SuiteError, match="would have 1000002 bytes, more than 1000000"):
        write_suite_file("ä" * 500_001, tmp_path / "x.toml")
    # Cards may list each prompt in ten tables.
    monkeypatch.setattr("converter.measurement.prompts.markdown_card.SUITE_LIMIT", 1)
    assert import_card(markdown_card(), "made") == SUITE
    with pytest.raises(SuiteError, match="tables name more than 10 prompts"):
        import_card(markdown_card() + "\n\n| ID | Seed |\n|-|-|\n| P01 | 301 |", "made")


def test_files_that_cannot_be_suites(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"eleven: no suite has that name") as caught:
        read_suite("eleven")
    assert "ten-signs" in caught.value.hint
    with pytest.raises(MissingInput, match="no such file"):
        read_suite(tmp_path / "none.toml")
    file = tmp_path / "mine.toml"
    file.write_bytes(b'name = "\xff"')
    with pytest.raises(SuiteError, match="is not UTF-8 at byte 8"):
        read_suite(file)
    file.write_bytes(b"#" * 1_000_001)
    with pytest.raises(SuiteError, match="is longer than 1000000 bytes"):
        read_suite(file)
    file.write_text("\ufeff" + SUITE.to_toml(), "utf-8")
    assert read_suite(file) == SUITE


def test_import_says_what_it_found(tmp_path: Path, lensconv: Lensconv) -> None:
    card, output = tmp_path / "README.md", tmp_path / "suite.TOML"
    card.write_text(markdown_card(), "utf-8")
    outcome = lensconv("prompts", "import", card, "--out", output, "--name", "made", "--json")
    assert outcome.code == 0, outcome.stderr
    assert accepted(outcome.result, "prompts") == []
    assert outcome.result == {"suite": str(output), **SUITE.to_dict(), "required_texts": 45}
    assert read_suite(output) == SUITE
    assert names_in(tmp_path) == ["README.md", "suite.TOML"]
    outcome = lensconv("prompts", "import", card, "--out", output, "--overwrite")
    assert read_suite(output).name == "suite"
    shown = " ".join(outcome.stderr.split())
    assert f"10 prompts, 45 required texts, SHA-256 {read_suite(output).sha256}." in shown
    assert all(f" {p.id} {p.scenario} {p.seed} {len(p.required_text)} " in shown for p in SUITE.prompts)
    assert lensconv("prompts", "import", card, "--out", output, "--overwrite", "--quiet").stderr == ""


def test_import_writes_nothing_where_it_must_not(tmp_path: Path, lensconv: Lensconv) -> None:
    card, taken = tmp_path / "README.md", tmp_path / "taken.toml"
    card.write_text("nothing", "utf-8")
    taken.write_text("mine", "utf-8")
    for output, code, said in (
        (taken, OutputError.exit_code, "exists already"),
        (tmp_path / "no" / "suite.toml", OutputError.exit_code, "no such folder"),
        (tmp_path / "suite.txt", UsageError.exit_code, "its name must end in .toml"),
        (tmp_path / "suite.toml", SuiteError.exit_code, "has neither a table"),
    ):
        outcome = lensconv("prompts", "import", card, "--out", output)
        assert outcome.code == code
        assert said in outcome.stderr
    (tmp_path / "closed").mkdir(0o555)
    line = ("prompts", "import", card, "--out", tmp_path / "closed" / "suite.toml")
    assert "closed: cannot be written" in run_process(*line, preexec_fn=obey_permissions).stderr
    assert names_in(tmp_path) == ["README.md", "closed", "taken.toml"]
    assert taken.read_text("utf-8") == "mine"
    card.write_text(markdown_card(), "utf-8")
    assert "name is empty" in lensconv("prompts", "import", card, "--out", tmp_path / "suite.toml", "--name", "").stderr


def test_cards_that_are_not_files(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="no such file"):
        read_card(str(tmp_path / "none.md"))
    with pytest.raises(MissingInput, match="is a folder") as folder:
        read_card(str(tmp_path))
    assert folder.value.hint == "Name the card in it, such as README.md."
    for address in ("https://example.com/a/b", "HTTP://example.com"):
        with pytest.raises(UsageError, match="is not a file") as caught:
            read_card(address)
        assert "hf://OWNER/NAME" in caught.value.hint
    with pytest.raises(UsageError, match="not the address of a model on the Hub"):
        read_card("hf://a")


class Hub(Quiet, BaseHTTPRequestHandler):
    """Answers as the Hub does, by the name of the repo or the revision."""

    CONTENT = markdown_card().encode()
    #: Status, headers, and what is said of them.
    ANSWERS: dict[str, tuple[int, dict[str, str], str]] = {  # noqa: RUF012 - never changed
        "gone": (404, {"X-Error-Code": "RepoNotFound"}, "the model does not exist, or is private"),
        "hidden": (401, {}, "the Hub answers with status 401"),
        "gated": (401, {"X-Error-Code": "GatedRepo"}, "the repo is gated"),
        "forbidden": (403, {}, "the Hub answers with status 403"),
        "model@old": (404, {"X-Error-Code": "RevisionNotFound"}, "the repo has no such revision"),
        "bare": (404, {"X-Error-Code": "EntryNotFound"}, "the repo has no README.md"),
        "broken": (500, {"X-Error-Message": "it broke"}, "the Hub answers with status 500"),
        "stranger": (200, {}, "the server that answers is not the Hub"),
    }

    def answer(self) -> None:
        """Send the status and the headers that the address asks for."""
        found = {"X-Repo-Commit": "c" * 40, "ETag": '"e"', "X-Seen": self.path}
        _, _, name, _, revision, _ = self.path.split("/")
        status, headers, _ = self.ANSWERS.get(name) or self.ANSWERS.get(f"{name}@{revision}", (200, found, ""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.CONTENT)) if status == 200 else "0")
        self.end_headers()
        if self.command == "GET" and status == 200:
            self.wfile.write(self.CONTENT)

    do_GET = do_HEAD = answer  # noqa: N815 - names that http.server calls


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """Address of a Hub on this machine."""
    with serving(Hub) as address:
        yield address


#: Reads cards and says what came; waits between tries are left out, as the Hub of this test does not recover.
SCRIPT = """
import json, sys, time
from converter.errors import LensconvError
from converter.measurement.prompts.fetch import read_card
time.sleep = lambda seconds: None
outcomes = {}
for place in sys.argv[1:]:
    try:
        outcomes[place] = read_card(place)
    except LensconvError as error:
        outcomes[place] = [error.exit_code, type(error).__name__, error.message, error.hint]
json.dump(outcomes, sys.stdout)
"""


def fetch(folder: Path, *places: str, **environment: str) -> dict[str, Any]:
    """Read cards in a process of its own: huggingface_hub reads its environment when it is imported."""
    foreign = ("HF_", "HTTP", "ALL_PROXY")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(foreign)}
    settings = {"HF_HOME": str(folder), "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    done = run_python(SCRIPT, *places, flags=("-W", "error"), env={**kept, **settings, **environment})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "hf_secret" not in done.stdout
    outcomes: dict[str, Any] = json.loads(done.stdout)
    return outcomes


def test_cards_from_the_hub(hub: str, tmp_path: Path) -> None:
    good = ("hf://maker/model", "hf://maker/model@refs/pr/1")
    outcomes = fetch(tmp_path, *good, *(f"hf://maker/{name}" for name in Hub.ANSWERS), HF_ENDPOINT=hub)
    for place in good:
        assert import_card(outcomes[place], "made") == SUITE
    for name, (_, _, said) in Hub.ANSWERS.items():
        *found, hint = outcomes[f"hf://maker/{name}"]
        assert found == [4, "HubError", f"hf://maker/{name}: {said}"]
        assert hint
    # What is cached is read without the Hub.
    outcomes = fetch(tmp_path, good[0], "hf://maker/other", HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert import_card(outcomes[good[0]], "made") == SUITE
    assert "the card is not in the cache, and HF_HUB_OFFLINE" in outcomes["hf://maker/other"][2]


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for environment, said in (
        ({"HF_ENDPOINT": "http://user:hf_secret@127.0.0.1:9"}, "the Hub cannot be reached"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_ä"}, "the token is not ASCII"),
    ):
        (outcome,) = fetch(tmp_path / "home", "hf://maker/model", **environment).values()
        assert outcome[0] == HubError.exit_code
        assert said in outcome[2]
