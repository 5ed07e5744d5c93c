"""The tables of docs/scale.md: the cost of the language models of all sizes, as ``attractor cost`` estimates it.

python -m benchmarks.scale             # prints them, in seconds; nothing is measured
python -m benchmarks.scale --write     # writes them into docs/scale.md
"""

import re
from pathlib import Path

import tyro

from attractor import recipes
from attractor.config import override
from attractor.experiment.cost import estimate_cost

DOCS = Path(__file__).parents[1] / "docs" / "scale.md"
RECIPES = [f"language/{size}{family}" for size in ("140m", "370m", "770m") for family in ("", "-transformer")]
EVALUATIONS = 8
ROWS = 4  # per GPU and batch
GPUS = (1, 8, 64)


def settings(num_gpus: int) -> list[str]:
    """Return settings for four rows per GPU and 524,288 tokens per step with any number of GPUs."""
    return [f"text.batch_size={ROWS * num_gpus}", f"train.accumulate={256 // (ROWS * num_gpus)}"]


def tables() -> str:
    """Return both tables as Markdown."""
    lines = ["| recipe | weights | embedding | forward | training | whole run |", "|---|---|---|---|---|---|"]
    for name in RECIPES:
        found = estimate_cost(recipes.get(name), evaluations=EVALUATIONS)
        parts = found.parameters
        each = (found.flops(training=False), found.flops())
        total = f"{(found.total_flops or 0) / 1e18:.1f}"
        weights = f"{sum(parts.values()) / 1e6:.1f}M | {parts['embedding'] / 1e6:.1f}M"
        lines.append(f"| `{name}` | {weights} | {' | '.join(f'{x / 1e9:.2f}' for x in each)} | {total} |")
    columns = ["1", *(f"{n} {how}" for n in GPUS[1:] for how in ("ddp", "fsdp"))]
    heads = [f"GB, {c}" for c in columns] + [f"days, {n}" for n in GPUS]
    lines += ["", f"| recipe | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in RECIPES:
        memory, spans = [], []
        for n in GPUS:
            config = override(recipes.get(name), settings(n))
            for how in ("ddp", "fsdp") if n > 1 else ("none",):
                found = estimate_cost(config, evaluations=EVALUATIONS, world_size=n, strategy=how)
                memory.append(f"{found.memory.peak / 1e9:.1f}")
            spans.append(f"{found.days('H100'):.2f}")
        lines.append(f"| `{name}` | {' | '.join([*memory, *spans])} |")
    return "\n".join(lines)


def updated(text: str) -> str:
    """Return the page with new tables."""
    begin, end = "<!-- tables: python -m benchmarks.scale -->", "<!-- end of tables -->"
    return re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n\n{tables()}\n\n{end}", text, flags=re.DOTALL)


def main(write: bool = False) -> None:
    """Print the tables.

    Args:
        write: Write them into docs/scale.md instead.
    """
    if write:
        DOCS.write_text(updated(DOCS.read_text()))
    else:
        print(tables())


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.scale")
