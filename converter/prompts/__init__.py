"""Prompt suites: what is drawn to compare two models, and which texts every image must show."""
