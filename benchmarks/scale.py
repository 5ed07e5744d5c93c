"""The tables of docs/scale.md: what the language models of the ladder cost, by the model behind ``attractor cost``.

python -m benchmarks.scale     # writes them into docs/scale.md, in seconds; nothing is measured
"""

import re
from pathlib import Path

from attractor import recipes
from attractor.cli.cost import EXPECTED_MFU, days
from attractor.config import override
from attractor.experiment.cost.device import PEAK_FLOPS
from attractor.experiment.cost.estimate import estimate_cost, parameters

DOCS = Path(__file__).parents[1] / "docs" / "scale.md"
RECIPES = [f"language/{size}{family}" for size in ("140m", "370m", "770m") for family in ("", "-transformer")]
EVALUATIONS = 8
ROWS = 4  # on a GPU at a time
GPUS = (1, 8, 64)


def settings(num_gpus: int) -> list[str]:
    """Four rows a GPU, and 524,288 tokens a step however many there are."""
    return [f"text.batch_size={ROWS * num_gpus}", f"train.accumulate={256 // (ROWS * num_gpus)}"]


def tables() -> str:
    """Return both tables as Markdown."""
    lines = ["| recipe | weights | embedding | forward | training | whole run |", "|---|---|---|---|---|---|"]
    for name in RECIPES:
        found = estimate_cost(recipes.get(name), evaluations=EVALUATIONS)
        parts = parameters(found.model)
        each = (found.forward(found.evaluations), found.flops)
        total = f"{(found.total or 0) / 1e18:.1f}"
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
            spans.append(f"{days(found, PEAK_FLOPS['H100'], EXPECTED_MFU):.2f}")
        lines.append(f"| `{name}` | {' | '.join([*memory, *spans])} |")
    return "\n".join(lines)


def renewed(text: str) -> str:
    """Return the page with its tables as they are now."""
    begin, end = "<!-- tables: python -m benchmarks.scale -->", "<!-- end of tables -->"
    return re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n\n{tables()}\n\n{end}", text, flags=re.DOTALL)


if __name__ == "__main__":
    DOCS.write_text(renewed(DOCS.read_text()))
