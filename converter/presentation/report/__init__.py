"""The report of a bench: one HTML page that works offline, in which the images of both models can be compared.

A page runs no code but its own script, whose checksum it names, and asks for nothing.
"""
