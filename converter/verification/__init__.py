"""Checks on a checkpoint: headers, weights, checksums, loaders, and repos on the Hub.

``verify`` runs them; the facts they judge come from headers.
"""
