"""Why an equation settles below the tolerance and not at it: calls and mean evaluations per token by margin.

    python -m benchmarks.margin

The table in ``docs/architecture.md``. Causal transformer blocks of ``benchmarks.solvers``, Anderson, one seed.
"""

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import attractor.solve.loop as loop
from attractor import Tolerance, fixed_point
from benchmarks.solvers import BATCH, TIME, WIDTH, CompiledBlock

MARGINS = (1.0, 0.5, 0.25, 0.1)
CASES = ((0.5, 1e-3), (0.75, 1e-5), (0.9, 1e-4))
OUT = Path("results/solvers/margin.json")


@torch.no_grad()
def main() -> None:
    view = Table(title="calls / mean evaluations per token")
    for column in ("gate", "tolerance", *(f"settle at {m}×" for m in MARGINS)):
        view.add_column(column, justify="right")
    rows = []
    for gate, tolerance in CASES:
        torch.manual_seed(1)
        block, c = CompiledBlock(gate), torch.randn(BATCH, TIME, WIDTH)
        cells = []
        for margin in MARGINS:
            loop.FREEZE_MARGIN = margin
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
    main()
