"""What people see of the measurements: grid, charts and model card.

Every figure comes from an evidence file.
"""
