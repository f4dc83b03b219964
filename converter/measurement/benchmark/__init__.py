"""Measure the original and the quantized model, with a worker process for each model, mode and repeat.

Two subjects (repos with hashed weights) and a suite of prompts give cells: a model, a mode, a repeat. A cell gives jobs
for workers, and a worker answers with events. Their figures are written line by line to a journal, from which the files
of measurements are made. A run that was killed continues from the journal.
"""
