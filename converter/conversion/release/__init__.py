"""The files of a release beside its weights: manifest, configs, companions.

And which folders ``--overwrite`` may replace.
"""
