"""The main job: perplexity against keep ratio, and the report's own faults, measured."""
