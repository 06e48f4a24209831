"""What every test runs under: offline, one torch thread a worker, MuJoCo rendered without a display.

The environment is set before anything imports torch or MuJoCo, and child processes inherit it. Fixtures that belong to
one folder live in that folder's own conftest.py.
"""

import os
from ctypes.util import find_library

# Debian's newest releases drop OSMesa; EGL renders at the same speed on a CPU.
os.environ.setdefault("MUJOCO_GL", "osmesa" if find_library("OSMesa") else "egl")
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # tiny models are slower with more, and two workers would fight over two cores
    "MKL_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "COLUMNS": "200",  # help and error texts are compared unwrapped
}.items():
    os.environ.setdefault(name, value)
