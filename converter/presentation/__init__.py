"""The measurements for people: tables, grid, charts and model card.

Every figure comes from an evidence file.
"""
