"""Models for tests and demos, with random weights and the layout of the real ones.

``synthesize`` writes a transformer, or a tiny pipeline that generates on a CPU.
"""
