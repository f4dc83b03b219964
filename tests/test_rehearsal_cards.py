"""What the local Hub says about the metadata of cards."""

from __future__ import annotations

import pytest

from converter.presentation.card.metadata import MetadataReport
from converter.rehearsal.card_metadata import check_card


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: apache-2.0\nbase_model: [a/b]\nbase_model_relation: quantized\npipeline_tag: text-to-image", ""),
        ("license: other\nlicense_name: my-1.0\nlicense_link: LICENSE.md\nlanguage: [en]\ntags: [a]", ""),
        ("license: [mit, 3]", "license"),
        ("base_model: a/b/c", "base_model"),
        ("base_model_relation: other", "base_model_relation"),
        ("pipeline_tag: draw me", "pipeline_tag"),
        ("pipeline_tag: [text-to-image]", "pipeline_tag"),
        ("tags: a", "tags"),
        ("language: no", "language"),
        ("license_name: My License", "license_name"),
        ("license_link: ../LICENSE", "license_link"),
        ("model-index: {}", "model-index"),
        ("a: [", "not YAML in line"),
        ("- a", "not a mapping"),
        ("a: !!python/object:os.system {}", "not YAML"),
    ],
)
def test_metadata_of_cards(metadata: str, message: str) -> None:
    found = check_card(f"---\n{metadata}\n---\n# Card\n")
    assert not found.warnings
    assert message in " ".join(found.errors)
    assert bool(found.errors) == bool(message)


def test_cards_without_metadata_are_warned_of() -> None:
    for card in ("# Card\n", "", "---\n---\n", "----\na: 1\n----\n"):
        assert check_card(card) == MetadataReport((), ("empty or missing yaml metadata in repo card",))
