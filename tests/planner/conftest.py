"""The TPU compiler, which `make test` installs beside the environment and not into it."""

import os
import sys
from pathlib import Path

BESIDE = Path(sys.prefix) / "libtpu"
sys.path.append(str(BESIDE))  # JAX has looked for it already, when it was imported
os.environ.setdefault("TPU_LIBRARY_PATH", str(BESIDE / "libtpu/libtpu.so"))
