"""Jinja templates. Installed, this folder is the package ``converter.templates``."""
