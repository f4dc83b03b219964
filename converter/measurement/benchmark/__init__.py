"""Measuring the original against the quantized model: a worker process for each model, mode and repeat.

The values, in their order: two subjects (repos whose weights were hashed) and a suite of prompts give cells (a model, a
mode, a repeat); a cell gives jobs for workers; a worker answers with events; what they say goes line by line into a
journal, from which the files of measurements are made. A run that is killed goes on from the journal.
"""
