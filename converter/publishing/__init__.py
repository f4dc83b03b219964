"""Putting a release on the Hub: wholly there and proven, or not there."""
