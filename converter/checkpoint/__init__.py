"""safetensors files on this machine: headers, sources, readers, writers and layouts.

And staging, which makes any output folder appear as a whole or not at all.
"""
