"""A local Hub that speaks the protocol of huggingface.co for model repos.

``rehearse`` publishes a release there, downloads it and generates an image with the download.
"""
