"""Broken compressors and evaluators, one known fault each, and the check that catches it."""
