"""Running a plan: jobs, workers, memory budget, checksums behind the writers.

Threads read pieces, convert them and write them into their slots.
"""
