"""A GPU against the CPU, or a stand-in for a GPU that any machine has."""
