"""The comparison grid: images of both models side by side, with a row for each prompt.

Images keep their native size, pixel for pixel.
"""
