"""The style of all charts: one page width, two sizes of text, two themes, one color for each model.

Lengths are pixels of a page that is ``WIDTH`` wide. On a small screen, cards show it half as wide, and text must still
be 11 pixels high. So text must be 22 pixels of the page high, from the top of a capital to the bottom of a descender;
DejaVu Sans needs a size of 23 for that (cap height 0.729 em, descender 0.236 em).
"""

from __future__ import annotations

from dataclasses import dataclass

from converter.measurement.evidence.names import ORIGINAL

WIDTH = 800
MARGIN = 20
TEXT_SIZE = 23
TITLE_SIZE = 28
#: From one line of text to the next.
LINE = 32
#: Between a mark and the text that belongs to it.
GAP = 8


@dataclass(frozen=True)
class Theme:
    """Colors on one background. Text has a contrast of at least 4.5 with it, marks of at least 3 (WCAG 2.2, 1.4.3 and
    1.4.11); lines of the grid carry no information and may have less."""

    name: str
    background: str
    ink: str
    muted: str
    grid: str
    original: tuple[str, str, str]
    """The color of the original model, then darker and lighter ones for parts of its bars."""
    quantized: tuple[str, str, str]

    def color(self, model: str, shade: int = 0) -> str:
        """Return a color of ``original`` or ``quantized``; shades repeat after three."""
        shades = self.original if model == ORIGINAL else self.quantized
        return shades[shade % len(shades)]


# People with any common color blindness can distinguish blue and orange; backgrounds and greys are those of GitHub.
LIGHT = Theme(
    name="light",
    background="#ffffff",
    ink="#1f2328",
    muted="#57606a",
    grid="#d8dee4",
    original=("#1b66a8", "#0d3b66", "#5b95c9"),
    quantized=("#d9731c", "#7a3600", "#b5560b"),
)
DARK = Theme(
    name="dark",
    background="#0d1117",
    ink="#e6edf3",
    muted="#9198a1",
    grid="#2b323b",
    original=("#4f9fe0", "#a8d1f5", "#3572a8"),
    quantized=("#f0953f", "#fbd3a8", "#b0651f"),
)
THEMES = (LIGHT, DARK)
