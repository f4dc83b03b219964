"""What a card says of the original that a release with LoRA was compared with."""

from __future__ import annotations

from converter.measurement.evidence import names
from converter.presentation.card.evidence import CardEvidence
from converter.presentation.card.release import CardRelease
from converter.presentation.tables.adapters import describe_original

#: Files of measurements that compare with the original, by the section of the card that shows them.
_FILES = {"comparison": names.MATRIX_NAME, "images": names.IMAGES_NAME, "weights": names.WEIGHTS_NAME}


def describe_originals(release: CardRelease, evidence: CardEvidence) -> dict[str, str]:
    """Return a sentence for each section that compares with the original; empty for a release without LoRA."""
    contents = {section: evidence.files.get(name, {}) for section, name in _FILES.items()}
    return {
        section: describe_original(content.get("sources", {}), release.adapters)
        for section, content in contents.items()
    }
