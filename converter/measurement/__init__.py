"""What is measured: images, their similarity, times, memory.

Prompts, generation, comparison, evidence files and the benchmark.
"""
