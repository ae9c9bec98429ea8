"""Many cells: in one process, on a cluster, interrupted; and the store that keeps them."""
