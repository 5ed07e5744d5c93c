"""What a result was made with: versions, device and commit."""

import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import attractor


def environment() -> dict[str, Any]:
    """Return versions, device and, in a checkout, the commit."""
    commit = None
    with suppress(OSError):  # there may be no git
        command, here = ["git", "rev-parse", "HEAD"], Path(__file__).parent
        commit = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False).stdout.strip() or None
    return {
        "attractor": attractor.__version__,
        "commit": commit,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }
