"""Tables of measurements as plain values, which the terminal and the card render.

A table contains formatted figures; the renderer escapes and aligns them.
"""
