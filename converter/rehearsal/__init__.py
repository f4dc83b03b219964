"""A Hub on this machine that speaks the real one's protocol, and a dress rehearsal of a release on it."""
