"""The core and both methods: counts, survivors, the one pass against the definition, every model family."""
