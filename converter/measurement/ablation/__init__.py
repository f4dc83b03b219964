"""Measure variants of a recipe against each other: which layers must stay, and what that costs."""
