"""Running a plan: jobs, workers, memory budget, checksums.

Threads read pieces, convert them and write them into their slots.
"""
