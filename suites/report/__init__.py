"""The page: its words follow from its data, and text of users stays text."""
