"""The arithmetic on weights: the fused uint4 kernel and SDNQ's own functions.

``selfcheck`` compares the two with the versions that are installed.
"""
