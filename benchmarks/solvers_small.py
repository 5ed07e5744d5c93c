"""Small problems here and in optimistix, which runs in a process of its own; both sides take turns."""

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attractor import Anderson, Implicit, Picard, Tolerance, fixed_point, root

ROOT = Path(__file__).parents[1]
REPETITIONS = 9
Problem = tuple[int, Callable[[], Tensor]]  # solves per measurement, and the solve


def data() -> dict[str, np.ndarray]:
    """Return the numbers of the problems."""
    generator = np.random.default_rng(0)
    return {
        "mean": generator.uniform(0, 2 * np.pi, 10_000),
        "eccentricity": generator.uniform(0, 0.9, 10_000),
        "weight": (0.5 / 16 * generator.standard_normal((256, 256))).astype(np.float32),
        "shift": generator.standard_normal((64, 256)).astype(np.float32),
    }


def problems(numbers: dict[str, np.ndarray]) -> dict[str, dict[str, Problem]]:
    """Return our ways to solve each problem."""
    mean, eccentricity, weight, shift = (torch.from_numpy(numbers[name]) for name in numbers)
    start = torch.ones(1, 1, dtype=torch.float64)

    def kepler() -> Tensor:
        first = mean + eccentricity * mean.sin()
        return root(lambda e: e - eccentricity * e.sin() - mean, first, stop=Tolerance(1e-10)).value

    def kepler_anderson() -> Tensor:
        stop = Tolerance(1e-10, max_evaluations=200)
        return fixed_point(lambda e: mean + eccentricity * e.sin(), mean, solver=Anderson(window=2), stop=stop).value

    def tanh(solver: Picard | Anderson, weight: Tensor) -> Tensor:
        return fixed_point(
            lambda y: torch.tanh(y @ weight) + shift,
            torch.zeros_like(shift),
            solver=solver,
            stop=Tolerance(1e-5),
            gradient=Implicit(solver=solver),
        ).value

    def gradient(solver: Picard | Anderson) -> Tensor:
        with torch.enable_grad():
            tracked = weight.clone().requires_grad_()
            return torch.autograd.grad(tanh(solver, tracked).square().sum(), tracked)[0]

    def scalar() -> Tensor:
        return fixed_point(torch.cos, start, solver=Picard(), stop=Tolerance(1e-4)).value

    return {
        "scalar": {"Picard": (100, scalar)},
        "kepler": {"Newton": (3, kepler), "Anderson": (3, kepler_anderson)},
        "tanh": {"Picard": (5, lambda: tanh(Picard(), weight)), "Anderson": (5, lambda: tanh(Anderson(), weight))},
        "tanh, gradient": {"Picard": (2, lambda: gradient(Picard())), "Anderson": (2, lambda: gradient(Anderson()))},
    }


@torch.no_grad()
def measure(python: str, threads: int) -> list[dict[str, Any]]:
    """Return medians in milliseconds and of the ratios. ``python`` is an interpreter that has optimistix.

    With one thread the processor time is measured, which depends less on other load, otherwise the wall-clock time.
    """
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    numbers = data()
    sides = problems(numbers)
    exact = {name: next(iter(ways.values()))[1]() for name, ways in sides.items()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "problems.npz")
        np.savez(path, **numbers, **{f"{name}: exact": value.numpy() for name, value in exact.items()})
        flags = f"--xla_cpu_multi_thread_eigen={'false' if threads == 1 else 'true'}"
        peer = subprocess.Popen(
            [python, "-c", "from benchmarks.solvers_jax import main; main()", str(path), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": f"{flags} intra_op_parallelism_threads={threads}"},
        )  # fmt: skip
        assert peer.stdin is not None
        assert peer.stdout is not None
        with peer:
            for name, ways in sides.items():
                theirs, difference = [], 0.0
                ours: dict[str, list[float]] = {way: [] for way in ways}
                for _ in range(REPETITIONS + 1):
                    print(name, file=peer.stdin, flush=True)
                    milliseconds, difference = map(float, peer.stdout.readline().split())
                    theirs.append(milliseconds)
                    for way, (num, solve) in ways.items():
                        started = clock()
                        for _ in range(num):
                            solve()
                        ours[way].append(1e3 * (clock() - started) / num)
                for way, values in ours.items():
                    ratios = [a / b for a, b in zip(values[1:], theirs[1:], strict=True)]  # the first is warm-up
                    rows.append(
                        {
                            "problem": name,
                            "threads": threads,
                            "solver": way,
                            "attractor_ms": statistics.median(values[1:]),
                            "optimistix_ms": statistics.median(theirs[1:]),
                            "ratio": statistics.median(ratios),
                            "largest_difference": difference,
                        }
                    )
            peer.stdin.close()
    return rows


def has_optimistix(python: str) -> bool:
    return not subprocess.run([python, "-c", "import jax, optimistix"], capture_output=True, check=False).returncode
