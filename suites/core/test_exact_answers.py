"""Answers and error messages to the letter, where a property would let a near miss pass."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.fast
