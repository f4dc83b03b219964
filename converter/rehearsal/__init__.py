"""A Hub on this machine that speaks the protocol of the real one.

``rehearse`` publishes a release there, downloads it, and draws an image with it.
"""
