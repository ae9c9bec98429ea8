"""The ledger and its verdicts: every verdict follows from the data."""
