"""Gemma 3 270M, a second family, for who asks for it: its perplexities, their controls, and where its norms are."""
