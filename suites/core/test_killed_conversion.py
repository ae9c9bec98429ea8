"""The embedded model's conversion, killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from knorm_core import ModelNotFoundError
from knorm_core.inputs import embedded_model

pytestmark = pytest.mark.full


def test_a_conversion_killed_half_way_leaves_nothing_that_looks_done(tmp_path):
    # Slowed down after the weights are written into the unfinished folder, and killed there.
    code = (
        "import time, knorm_core.inputs.embedded_model as m\n"
        "def slow(gguf, folder):\n"
        "    (folder / 'model.safetensors').write_bytes(b'half')\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
        "m._convert = slow\n"
        "m.convert_embedded()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "KNORM_CACHE": str(tmp_path)}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n"
    process.kill()
    process.communicate()
    assert not list(tmp_path.glob("smollm2*/model.safetensors"))
    with pytest.MonkeyPatch.context() as patch:  # and the next one is not in its way
        patch.setenv("KNORM_CACHE", str(tmp_path))
        patch.setattr(embedded_model, "_convert", lambda gguf, folder: (folder / "model.safetensors").write_bytes(b"x"))
        started = time.monotonic()
        with pytest.raises(ModelNotFoundError, match=r"config\.json is not there"):
            embedded_model.convert_embedded()
        assert time.monotonic() - started < 30
