"""kvpress against the contract, and its perplexity against ours."""
