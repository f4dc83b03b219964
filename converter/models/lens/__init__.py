"""Lens, the text-to-image model: transformer, text encoder and pipeline.

Import the classes from ``converter.lens``, which also registers them; ``layout`` and ``resolutions`` need no torch.
"""
