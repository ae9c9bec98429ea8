"""The paper's other experiments: their measures by another road, and their tables against the baselines."""
