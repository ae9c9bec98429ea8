"""How an evaluation is computed: token by token on a real cache, or in one pass; and what a model allows."""
