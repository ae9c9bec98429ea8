"""What a run found, as records and as a file."""
