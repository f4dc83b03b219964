"""Generate images with an original or a quantized repo.

Prompts are encoded first, and the text encoder is released before the transformer is loaded.
"""
