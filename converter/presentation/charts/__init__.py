"""Charts of what was measured: SVG and PNG, light and dark.

The same evidence gives the same bytes.
"""
