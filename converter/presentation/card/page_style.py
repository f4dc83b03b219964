"""The style sheet of a card's page, in page.css."""

from __future__ import annotations

from importlib import resources

#: Light and dark, after pages of repos.
STYLE = resources.files(__package__).joinpath("page.css").read_text("utf-8")
