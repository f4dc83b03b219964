"""What a browser shows of the local Hub."""

from __future__ import annotations

import base64

from converter.presentation.card.page_style import STYLE
from tests.expected import check_expected
from tests.faulty_hub import FaultyHub
from tests.hubs import CARD, Answer, ask, commit, head, lfs_file, make_repo, upload


def test_the_page_of_a_repo(hub: FaultyHub) -> None:
    repo = make_repo(hub, "shown")
    image = b"\x89PNG\r\n\x1a\nxx"
    upload(hub, repo, image)
    evil = {
        "README.md": CARD + b"[b](./a%20b.md?c=d&e=~f#g-h_i.j) [c](/d.md) [e](//f) [g](#h) [i](mailto:j)\n<script>",
        "<script>.txt": b"x",
        "page.html": b"<script></script>",
        **dict.fromkeys(("a.jpg", "a.webp", "a.gif", "a.svg"), b"x"),
    }
    assert commit(hub, repo, evil, lfs_file("images/one.png", image)).status == 200
    made = head(hub, repo)
    assert ask(hub, "POST", f"/api/models/{repo}/tag/main", {"tag": "v1"}).status == 200
    offer = {"title": "<script>", "description": "<script>", "pullRequest": True}
    assert ask(hub, "POST", f"/api/models/{repo}/discussions", offer).status == 200
    assert commit(hub, repo, {"README.md": b"# Offer"}, revision="refs%2Fpr%2F1").status == 200
    picture = f"/{repo}/resolve/{made}/images/one.png"
    bare = make_repo(hub, "bare", private=True)
    assert ask(hub, "PUT", f"/api/models/{bare}/settings", {"gated": "auto"}).status == 200
    text = "".join(f"{ask(hub, 'GET', f'/{name}').body.decode()}\n" for name in (repo, bare))
    for commit_id in (made, head(hub, bare)):
        text = text.replace(commit_id, "<commit>").replace(commit_id[:12], "<12 of it>")
    check_expected("hub_pages.txt", text.replace(STYLE, "<the style of cards>"))
    origin, _, place = ask(hub, "GET", picture, token="").headers["location"].partition("/_files")
    # A page may show the image from where the redirect leads.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src 'self' {origin} https: data:; base-uri 'none'; "
    rules = {"content-security-policy": policy + "form-action 'none'; frame-ancestors 'none'"}
    rules |= {"cross-origin-resource-policy": "same-origin", "referrer-policy": "no-referrer"}
    rules |= {"x-content-type-options": "nosniff", "cache-control": "no-store"}
    for path in ("", "/tree/main", f"/tree/{made}"):
        page = ask(hub, "GET", f"/{repo}{path}", token="")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8"), path
        assert {**page.headers, **rules} == page.headers
        assert b"<script" not in page.body
    assert b"Offer</h1>" in ask(hub, "GET", f"/{repo}/tree/refs%2Fpr%2F1", token="").body
    sent = ask(hub, "GET", f"/_files{place}", token="")
    assert (sent.body, sent.headers["content-type"]) == (image, "image/png")
    assert "cross-origin-resource-policy" not in sent.headers
    hub.fault("forget", sha256=place[1:65])
    assert ask(hub, "GET", f"/_files{place}", token="").content == {"error": "The object is not stored"}
    names = ("page.html", "a.svg", "a.jpg", "a.webp", "a.gif")
    types = [ask(hub, "GET", f"/{repo}/resolve/main/{name}").headers["content-type"] for name in names]
    assert types == [*["text/plain; charset=utf-8"] * 2, "image/jpeg", "image/webp", "image/gif"]


def test_pages_of_private_repos_are_for_those_who_sign_in(hub: FaultyHub) -> None:
    repo = make_repo(hub, "hidden", private=True)
    assert commit(hub, repo, {"README.md": CARD}).status == 200

    def look(path: str, name: str = "", password: str = "", method: str = "GET") -> Answer:
        pair = base64.b64encode(f"{name}:{password}".encode()).decode()
        sent = {"Authorization": f"Basic {pair}"} if name else {}
        return ask(hub, method, path, token="", headers={"Accept": "text/html,*/*;q=0.8", **sent})

    asked = look(f"/{repo}")
    assert asked.status == 401
    assert asked.headers["www-authenticate"].startswith("Basic ")
    assert b"Lens" not in asked.body
    for name, password in (("alice", "wrong"), ("bob", hub.token("alice")), ("bob", hub.token("bob"))):
        assert look(f"/{repo}", name, password).status in (401, 404)
    for path in ("", "/tree/main", "/resolve/main/README.md"):
        assert look(f"/{repo}{path}", "alice", hub.token()).status == 200
    assert look(f"/{repo}/resolve/main/README.md", "alice", hub.token(), "HEAD").status == 200
    for sent, status in ((f"bearer {hub.token()}", 200), ("Basic x", 401), ("Basic /w==", 401)):
        assert ask(hub, "GET", f"/{repo}", token="", headers={"Authorization": sent}).status == status
    # What an answer says in a header is in Latin-1.
    assert commit(hub, repo, {}, lfs_file("日.bin", b"?")).headers["x-error-message"].endswith("- ?.bin")
    # A browser sends them wherever a page of another site leads it: they open what shows, never what changes.
    for method, path in (("GET", "/api/whoami-v2"), ("POST", "/api/repos/create"), ("GET", f"/api/models/{repo}")):
        refused = look(path, "alice", hub.token(), method)
        assert (refused.status, "www-authenticate" in refused.headers) == (401, False)
    # A program gets the same answer as from huggingface.co.
    plain = ask(hub, "GET", f"/{repo}/resolve/main/README.md", token="")
    assert (plain.status, plain.headers["content-type"]) == (401, "application/json")
