"""Why an equation freezes at a fraction of the tolerance: calls and mean evaluations per token by margin.

    python -m benchmarks.margin

This is the table in ``docs/architecture.md``. Causal transformer blocks of ``benchmarks.solvers``, Anderson, one seed.
"""

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import attractor.solve.tracker as tracker
from attractor import Tolerance, fixed_point
from benchmarks.command import run_command
from benchmarks.solvers import BATCH, TIME, WIDTH, GatedBlock

MARGINS = (1.0, 0.5, 0.25, 0.1)
CASES = ((0.5, 1e-3), (0.75, 1e-5), (0.9, 1e-4))
OUT = Path("results/solvers/margin.json")


@torch.no_grad()
def main() -> None:
    view = Table(title="calls / mean evaluations per token")
    for column in ("gate", "tolerance", *(f"freeze at {m}×" for m in MARGINS)):
        view.add_column(column, justify="right")
    rows = []
    for gate, tolerance in CASES:
        torch.manual_seed(1)
        block, c = GatedBlock(gate), torch.randn(BATCH, TIME, WIDTH)
        cells = []
        for margin in MARGINS:
            tracker.FREEZE_MARGIN = margin
            solution = fixed_point(lambda y, b=block, c=c: b(y, c), c, stop=Tolerance(rtol=tolerance), causal=True)
            assert solution.outcome.converged
            mean = solution.evaluations.float().mean().item()
            rows.append(
                {"gate": gate, "tolerance": tolerance, "margin": margin, "calls": solution.outcome.calls, "mean": mean}
            )
            cells.append(f"{solution.outcome.calls} / {mean:.1f}")
        view.add_row(f"{gate}", f"{tolerance:.0e}", *cells)
    Console().print(view)
    OUT.write_text(json.dumps({"command": "python -m benchmarks.margin", "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
