"""The comparison grid: images of both models side by side, pixel for pixel, with a row for each prompt."""
