"""What each tensor becomes, decided before a byte is written.

SDNQ decides on the empty model; for Lens the same plan is predicted without torch.
"""
