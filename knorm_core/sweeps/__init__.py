"""Many evaluations at a time: cells, where they run, and the store that keeps what they gave."""
