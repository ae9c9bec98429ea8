"""The report as a person meets it, in headless Chromium."""
