"""Mutants of the pure parts, and why the survivors compute the same."""
