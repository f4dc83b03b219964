"""Recipes: what to quantize, how, and what to keep.

The built-in recipes are the TOML files in this folder.
"""
