"""The numerics are usable without the packages that models and commands need."""

import subprocess
import sys

CODE = """
import sys, numpy, torch
before = {name.split(".")[0] for name in sys.modules}
import attractor.config, attractor.errors, attractor.layer, attractor.gradient, attractor.solve, attractor.testing
print(*sorted({name.split(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names)))
"""


def test_numerics_import_only_torch_and_numpy() -> None:
    """In a new process, they load nothing but this package on top of PyTorch and NumPy."""
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout.split() == ["attractor"]
