"""Publishing a release to the Hub in one verified commit.

The branch holds the old release or the new one, whatever stops the upload.
"""
