"""The model card: from a release and its evidence to README.md, and to a page as the Hub would show it."""
