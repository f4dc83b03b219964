"""Prompt suites: what is generated to compare two models, and the texts that each image must show.

``import_card`` reads the suite of a published model card.
"""
