"""Public implementations of KV eviction, in the user's own clones, held against the contract."""
