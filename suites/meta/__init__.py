"""The house itself: imports, ranges of dependencies, golden files, this map."""
