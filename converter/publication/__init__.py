"""Publishing a release to the Hub in one verified commit.

If anything stops the upload, the branch contains either the old release or the new one.
"""
