"""Anderson acceleration here and in TorchDEQ 0.1.0, on the same causal transformer blocks, in one run.

    python -m benchmarks.solvers [--optimistix-python PYTHON]

It also counts the operators of one evaluation on an accelerator, and compares small problems with optimistix, if an
environment with it is given. Two questions, for B 8, T 256, D 256 in float32:

* How many evaluations until *every token* is below the same relative residual? TorchDEQ solves either each row as one
  vector ("flat", how it is used) or each token separately ("token"). Its count favours it: the first evaluation at
  which every token is below tolerance, although its own stop rule cannot detect that in the flat case.
* What does the solver itself cost per evaluation: the time of the solve minus the time inside the block?

Times are medians over interleaved repetitions. On a shared machine only ratios are meaningful.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchdeq.solver.anderson import anderson_solver

from attractor import Anderson, Picard, Tolerance, fixed_point
from benchmarks.command import run_command
from benchmarks.solvers_operators import fused_launches, operators
from benchmarks.solvers_small import has_optimistix, measure

BATCH, TIME, WIDTH, HEADS, WINDOW = 8, 256, 256, 4, 5
GATES = (0.3, 0.5, 0.75)  # the scale of the block's branches: larger needs more evaluations
TOLERANCES = (1e-3, 1e-4, 1e-5)
SEEDS = (0, 1, 2)
REPETITIONS = 15
OUT = Path("results/solvers/solvers.json")


class GatedBlock(nn.Module):
    """A pre-norm causal transformer layer ``F`` in the attractor map ``y ↦ c + F(h) − h``, ``h = (y + c)/2``."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.gate = gate
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        for p in self.parameters():
            nn.init.normal_(p, std=p.shape[1] ** -0.5)

    def forward(self, y: Tensor, c: Tensor) -> Tensor:
        x = h = (y + c) / 2  # (B, T, D)
        q, k, v = self.qkv(F.rms_norm(x, (WIDTH,))).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D/H)
        x = x + self.gate * self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.gate * self.down(F.relu(self.up(F.rms_norm(x, (WIDTH,)))))
        return c + x - h


class MeasuredUpdate:
    """The update, which records its own time and the largest residual of any token at each call."""

    def __init__(self, block: GatedBlock, c: Tensor, *, measure_residual: bool) -> None:
        self.block, self.c, self.measure_residual = block, c, measure_residual
        self.seconds, self.max_residuals = 0.0, []

    def __call__(self, y: Tensor) -> Tensor:
        shape, started = y.shape, time.perf_counter()
        y = y.view_as(self.c)
        f = self.block(y, self.c)
        self.seconds += time.perf_counter() - started
        self.max_residuals.append(
            ((f - y).norm(dim=-1) / y.norm(dim=-1)).max().item() if self.measure_residual else 0.0
        )
        return f.view(shape)


Solve = Callable[[MeasuredUpdate, float, int], None]


def ours(update: MeasuredUpdate, tolerance: float, limit: int) -> None:
    stop = Tolerance(rtol=tolerance, max_evaluations=limit)
    solution = fixed_point(update, update.c, solver=Anderson(window=WINDOW), stop=stop, causal=True)
    if limit > 50:
        assert solution.outcome.converged, str(solution.outcome)


def torchdeq(shape: tuple[int, int]) -> Solve:
    def run(update: MeasuredUpdate, tolerance: float, limit: int) -> None:
        anderson_solver(update, update.c.view(shape), m=WINDOW, max_iter=limit, tol=tolerance, stop_mode="rel")

    return run


SOLVERS: dict[str, Solve] = {
    "attractor": ours,
    "torchdeq flat": torchdeq((BATCH, TIME * WIDTH)),
    "torchdeq token": torchdeq((BATCH * TIME, WIDTH)),
}


@torch.no_grad()
def count(gate: float, tolerance: float, seed: int) -> dict[str, int]:
    """Return the evaluations until every token is below tolerance. Ours counts all calls, verification included."""
    torch.manual_seed(seed)
    block, c = GatedBlock(gate), torch.randn(BATCH, TIME, WIDTH)
    counts = {}
    for name, solve in SOLVERS.items():
        update = MeasuredUpdate(block, c, measure_residual=True)
        solve(update, tolerance if name == "attractor" else 0.0, 100 if name == "attractor" else 40)
        below = [i for i, largest in enumerate(update.max_residuals, start=1) if largest < tolerance]
        counts[name] = len(update.max_residuals) if name == "attractor" else (below[0] if below else -1)
    return counts


@torch.no_grad()
def overhead() -> dict[str, list[float]]:
    """Return milliseconds per evaluation outside the block, one number per repetition; 16 evaluations each."""
    torch.manual_seed(0)
    block, c = GatedBlock(0.75), torch.randn(BATCH, TIME, WIDTH)
    figures: dict[str, list[float]] = {name: [] for name in [*SOLVERS, "block"]}
    for repetition in range(REPETITIONS + 1):
        for name, solve in SOLVERS.items():
            update = MeasuredUpdate(block, c, measure_residual=False)
            started = time.perf_counter()
            solve(update, 1e-12, 16)
            spent = time.perf_counter() - started
            if repetition:  # the first is warm-up
                figures[name].append(1e3 * (spent - update.seconds) / len(update.max_residuals))
                figures["block"].append(1e3 * update.seconds / len(update.max_residuals))
    return figures


def main(optimistix_python: str = sys.executable) -> None:
    """Measure, print and write.

    Args:
        optimistix_python: A Python interpreter that has optimistix and JAX. Without one, small problems are left out.
    """
    console = Console()
    counted = {
        f"{type(solver).__name__}, {'some' if any_frozen else 'none'} converged": len(
            operators(solver, any_frozen=any_frozen)
        )
        / 4
        for solver in (Picard(), Anderson())
        for any_frozen in (False, True)
    }
    counted |= {
        f"{type(solver).__name__}, some converged, fused": fused_launches(solver) for solver in (Picard(), Anderson())
    }
    console.print("operators of one evaluation on an accelerator, without the update's own:")
    for what, num in counted.items():
        console.print(f"  {what:35} {num:.0f}")
    small: list[dict[str, Any]] = []
    if has_optimistix(optimistix_python):
        for threads in (1, 2):
            small += measure(optimistix_python, threads)
        console.print("small problems, ms (median), and the median of the ratios to optimistix:")
        for row in small:
            figures = f"{row['attractor_ms']:9.3f} {row['optimistix_ms']:9.3f} {row['ratio']:7.2f}"
            console.print(f"  {row['problem']:15} {row['solver']:9} {row['threads']} thread(s) {figures}")
    else:
        console.print(f"{optimistix_python} has no optimistix, so small problems are not measured.")
    counts = [
        {"gate": gate, "tolerance": tolerance, "seed": seed, **count(gate, tolerance, seed)}
        for gate in GATES
        for tolerance in TOLERANCES
        for seed in SEEDS
    ]
    view = Table(title=f"evaluations until every token is below tolerance (seeds {SEEDS})", title_justify="left")
    for column in ("gate", "tolerance", *SOLVERS):
        view.add_column(column, justify="right")
    for gate in GATES:
        for tolerance in TOLERANCES:
            rows = [row for row in counts if (row["gate"], row["tolerance"]) == (gate, tolerance)]
            view.add_row(f"{gate}", f"{tolerance:.0e}", *(" ".join(str(row[name]) for row in rows) for name in SOLVERS))
    console.print(view)

    figures = overhead()
    medians = {name: statistics.median(values) for name, values in figures.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(figures["attractor"], figures[name], strict=True))
        for name in list(SOLVERS)[1:]
    }
    console.print(f"ms per evaluation outside the block (block itself: {medians['block']:.1f} ms):")
    for name in SOLVERS:
        ratio = f"  attractor/{name} = {ratios[name]:.2f}" if name in ratios else ""
        console.print(f"  {name:15} {medians[name]:.2f}{ratio}")
    environment = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    result = {
        "command": "python -m benchmarks.solvers",
        "environment": environment,
        "shape": [BATCH, TIME, WIDTH],
        "evaluations": counts,
        "overhead_ms_per_evaluation": medians,
        "overhead_ratio_attractor_to": ratios,
        "operators_per_evaluation": counted,
        "small_problems": small,
    }
    OUT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
