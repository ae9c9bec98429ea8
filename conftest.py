"""Fixtures and markers of this repository's own suites."""

import torch
from hypothesis import settings

pytest_plugins = ["knorm_core.plugin"]

# One intra-op thread per process is fastest for this work, and what the goldens are made with.
torch.set_num_threads(1)

settings.register_profile("knorm", deadline=None, derandomize=True, database=None)
settings.load_profile("knorm")
