"""Tables of measurements as plain values, which the terminal and the card render.

A table holds formatted figures; how they are escaped and aligned is up to the renderer.
"""
