"""The Hub as a client sees it: addresses, failures, retries, records.

Repos are read by byte ranges, without downloading them.
"""
