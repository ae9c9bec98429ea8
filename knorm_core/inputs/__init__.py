"""What goes into an evaluation: models and texts, from packages, folders, mirrors and the hub."""
