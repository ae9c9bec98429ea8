"""The fast suite many times over, in random order."""
