"""The model card: from a release and its evidence to README.md.

The preview shows it as the Hub would.
"""
