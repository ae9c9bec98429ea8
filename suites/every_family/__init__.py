"""Every causal family of the installed transformers, tiny and random: right, or refused with the reason."""
