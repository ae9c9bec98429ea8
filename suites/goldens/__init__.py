"""The embedded model on real prose, and figures of implementations that are not ours."""
