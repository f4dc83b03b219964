"""Tiny pipelines of the classes that diffusers and transformers have for the models that people convert.

Each has the structure of the real one: components, classes, scheduler and chat format, with smaller widths and depths.
"""
