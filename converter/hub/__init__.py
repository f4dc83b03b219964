"""The Hub as other rooms see it: addresses, failures, patience, and repos that are read without being downloaded."""
