"""Files of measurements: their formats, their checks, and the statistics that tables show.

What can be computed from other figures is computed again when a file is read.
"""
