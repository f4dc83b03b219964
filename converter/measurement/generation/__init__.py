"""Generating images with an original or a quantized repo.

Text is encoded first, and the text encoder dropped before the transformer is loaded.
"""
