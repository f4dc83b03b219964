"""Charts of what was measured: SVG and PNG, light and dark, the same bytes every time."""

from __future__ import annotations
