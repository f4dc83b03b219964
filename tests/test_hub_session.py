"""The connection to one repo, on a local Hub: what may be repeated, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from huggingface_hub import close_session

from converter.errors import HubError
from converter.hub.retry import Retry
from converter.publication.session import HubSession
from tests.faulty_hub import FaultyHub
from tests.hubs import make_repo


@pytest.fixture
def session(hub: FaultyHub, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubSession]:
    """Its user and a private repo; settings say that the token is sent on request only."""
    close_session()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setenv("HF_TOKEN", hub.token())
    yield HubSession(make_repo(hub, request.node.name[-40:], private=True), Retry(1, attempts=1))
    hub.clear_faults()
    close_session()


def test_what_was_done_already_may_be_repeated(session: HubSession) -> None:
    head = session.refs().head("main") or ""
    for _ in range(2):
        session.create(private=True)
        session.create_branch("next", "main")
        session.create_tag("v1", head)
    refs = session.refs()
    assert (refs.branches, refs.tags) == ({"main": head, "next": head}, {"v1": head})
    assert [*session.files_at(head).files] == [".gitattributes"]


def test_pull_requests_are_known_by_their_titles(session: HubSession) -> None:
    numbers = [session.open_pull_request(title, "alice") for title in ("One", "Two", "One", "Two")]
    assert numbers == [1, 2, 1, 2]
    for _ in range(2):
        session.offer_pull_request(2)
    assert [session.api.get_discussion_details(session.repository, number).status for number in (1, 2)] == [
        "draft",
        "open",
    ]
    assert session.open_pull_request("Two", "alice") == 2


def test_refusals_of_the_hub(session: HubSession, hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fault("status", status=403, headers={"X-Error-Code": "GatedRepo"}, path="/api/models/")
    with pytest.raises(HubError, match="the repo is gated"):
        session.describe()
    for body, said in (
        ("{}", "status 400"),
        (f'{{"errors": [{{"message": "not {hub.token()}"}}]}}', "the card: not …"),
    ):
        hub.fault("status", status=400, body=body, path="/validate-yaml")
        with pytest.raises(HubError, match=said):
            session.check_card("")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(HubError, match="no token was found"):
        session.user()
