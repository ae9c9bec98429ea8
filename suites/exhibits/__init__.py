"""Broken compressors, evaluators and policies, one known fault each, and the check that catches it."""
