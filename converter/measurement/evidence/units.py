"""Units and precision of the figures in files of measurements."""

from __future__ import annotations

GB = 10**9
#: Bytes of a weight in bfloat16, in which models are usually loaded.
LOADED_BYTES = 2
#: Digits after the point of seconds and GB, as in published tables.
DIGITS = 3
#: How far rounding to these digits may shift a figure: half a unit, and a little for binary fractions.
ROUNDING = 0.00051
#: The same for percents with one digit that were computed from rounded sizes.
PERCENT_ROUNDING = 0.051
