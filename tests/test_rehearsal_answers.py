"""The local Hub's answers, whole: each request of a transcript gets the answer that stands beside it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from itertools import groupby
from pathlib import Path

from converter.rehearsal.process import RunningHub, running_hub
from converter.rehearsal.settings import HubSettings
from tests.expected import EXPECTED, check_expected
from tests.hubs import Answer, ask, small_hub

_LINE = re.compile(r"(?P<who>\w+|-)(?:\*(?P<times>\d+))? (?P<method>[A-Z]+) (?P<requests>.+)")
_REQUEST = re.compile(r"(?P<path>/\S*)?(?P<headers>( ?[A-Z][\w-]+:\S+)*)( ?(?P<body>[{\[\"].*))?")
#: Headers that every answer has, or whose content is in the body.
_PLAIN_HEADERS = {"date", "server", "content-type: application/json"}


class Transcript:
    """Requests in words: ``WHO[*TIMES] METHOD PATH [Header:value] [BODY]``, with ``-`` for nobody.

    More of them follow after ``||``, where the same path is left out, and so is an answer like the one before. A body
    is an object, the operations of a commit as pairs, which need no header, or a text that is sent as it is. ``<a:3>``
    stands for ``aaa``, ``<=text>`` for the sha256 of a text, ``<c1>`` for the first commit that an answer named, and
    ``signature=`` at the end of a path for the signature that the Hub gave it.
    """

    def __init__(self, hub: RunningHub) -> None:
        self._hub = hub
        self._values = {f"<{account.name}>": account.token for account in hub.settings.accounts}
        self._values |= {"<hub>": hub.endpoint, "<files>": hub.endpoint.replace("127.0.0.1", "localhost")}
        self._values |= {"<folder>": str(hub.settings.folder), "<wrong>": "hf_" + "x" * 34, "<->": ""}
        self._signatures: dict[str, str] = {}

    def answer(self, line: str) -> str:
        """Send the requests of a line, and return the line with their answers."""
        asked = line.partition(" => ")[0]
        match = _LINE.fullmatch(asked)
        assert match, asked
        answers, path = [], ""
        for text in match["requests"].split(" || "):
            request = _REQUEST.fullmatch(text)
            assert request, text
            path = self._filled(request["path"]) if request["path"] else path
            content, headers = (
                self._body(request["body"]),
                dict(pair.split(":", 1) for pair in request["headers"].split()),
            )
            for _ in range(int(match["times"] or 1)):
                address, token = path + self._signatures.get(path, ""), self._values[f"<{match['who']}>"]
                answer = ask(self._hub, match["method"], address, content, token=token, headers=headers)
            answers.append(self._shown(answer))
        return f"{asked} => {' || '.join(text for text, _ in groupby(answers))}"

    def _filled(self, text: str) -> str:
        for repeated, times in re.findall(r"<([^<>]+):(\d+)>", text):
            self._values[f"<{repeated}:{times}>"] = repeated * int(times)
        for content in re.findall(r"<=([^<>]*)>", text):
            self._values[f"<={content}>"] = hashlib.sha256(content.encode()).hexdigest()
        for name, value in self._values.items():
            text = text.replace(name, value)
        return text

    def _body(self, text: str | None) -> object:
        content = json.loads(self._filled(text)) if text else None
        if isinstance(content, str):
            return content.encode("latin-1")
        if isinstance(content, list):
            if not content or content[0][0] != "header":
                content.insert(0, ("header", {"summary": "A commit"}))
            return b"\n".join(json.dumps({"key": key, "value": value}).encode() for key, value in content)
        return content

    def _shown(self, answer: Answer) -> str:
        body = answer.body.decode()
        headers = [f"{name}: {value}" for name, value in answer.headers.items() if name not in _PLAIN_HEADERS]
        if body and "x-error-message" in answer.headers:
            headers.remove(f"x-error-message: {answer.content['error']}")
        text = " | ".join([str(answer.status), *(line for line in headers if line not in self._plain(body)), body])
        for path, signature in re.findall(r"(/_[^\"; ]+signature=)([0-9a-f]{64})", text):
            self._signatures[path] = signature
            text = text.replace(signature, "")
        for commit in re.findall(r'"(?:sha|commitOid|mergeCommitId|targetCommit)":"([0-9a-f]{40})"', text):
            if commit not in self._values.values():
                self._values[f"<c{sum(name.startswith('<c') for name in self._values) + 1}>"] = commit
        for name, value in sorted(self._values.items(), key=lambda item: -len(item[1])):
            text = text.replace(value, name) if len(value) > 20 else text
        text = re.sub(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<now>", text)
        text = re.sub(r'"id":"[0-9a-f]{24}"', '"id":"<id>"', text)
        return re.sub(r"(?<!\d)\d{10}\b", lambda match: f"<{round((int(match[0]) - time.time()) / 60)} min>", text)

    def _plain(self, body: str) -> set[str]:
        return {f"content-length: {len(body.encode())}", "content-type: application/json"}


def test_every_answer_is_the_one_in_the_transcript(tmp_path: Path) -> None:
    settings = small_hub(tmp_path / "hub")
    settings = HubSettings(settings.folder, settings.accounts, multipart_bytes=10, part_bytes=4, page_entries=3)
    incoming = tmp_path / "hub" / "incoming"
    incoming.mkdir(parents=True)
    (incoming / "0.draft").write_bytes(b"half")
    with running_hub(settings) as hub:
        transcript = Transcript(hub)
        for file in sorted((EXPECTED / "hub").iterdir()):
            lines = file.read_text("utf-8").splitlines()
            check_expected(f"hub/{file.name}", "".join(f"{transcript.answer(line)}\n" for line in lines))
        # No upload has left anything, nor has a Hub that was killed. Without its folder, it cannot store what is new.
        incoming.rmdir()
        asked = 'alice POST /api/models/alice/p/commit/main [["file", {"path": "x", "content": "new"}]]'
        said = '507 | {"error":"The Hub cannot store or read this: No such file or directory"}'
        assert transcript.answer(asked) == f"{asked} => {said}"
