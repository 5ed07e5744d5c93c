"""What decoding costs: the cache at the equilibrium, converged tokens, and budgets, each against its alternative.

    python -m benchmarks.decode CHECKPOINT --data TEXT

CHECKPOINT is a trained attractor (``attractor train language/tiny``), TEXT held-out documents. Both sides of a pair run
in this process on the same work, in turns; figures are medians and ratios of medians. Sides:

1. one token after 1,024, with the cache, against solving the complete context again;
2. the 1,000th token against the 50th;
3. cached decoding at the equilibrium, and at depth 1, against the cached plain Transformer of the same layers;
4. held-out text solved with work on active tokens only, against the dense solve at the same tolerance.

Contexts may be longer than in training: positions are rotary, and only time is measured.
Written to ``results/decode``.
"""

import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import DynamicCache

from attractor import Anderson, Solution, Tolerance, fixed_point
from attractor.data.text import read_held_out
from attractor.evaluation import encode
from attractor.experiment.environment import environment
from attractor.experiment.loading import load_language_model
from attractor.files import write_json
from attractor.interop.stock_export import fold_gates
from attractor.models.language import AttractorConfig, AttractorForCausalLM
from benchmarks.command import run_command

OUT = Path("results/decode")
TOLERANCES = (3e-2, 1e-2, 3e-3, 1e-3)
Timed = dict[str, float]


def main(
    checkpoint: Path,
    /,
    data: Path,
    only: tuple[Literal["again", "late", "plain", "sparse"], ...] = (
        "again",
        "late",
        "plain",
        "sparse",
    ),
    repeats: int = 15,
    num_rows: int = 64,
    tolerances: tuple[float, ...] = TOLERANCES,
    threads: int | None = None,
) -> None:
    """Measure, print and write one file for each comparison.

    Args:
        checkpoint: Of a trained attractor.
        data: Held-out documents.
        only: Which comparisons, in the order of the four above.
        repeats: Of every measurement; the two long ones get a fifth.
        num_rows: Rows of 256 held-out tokens, at most, for the last comparison.
        tolerances: Of the last comparison.
        threads: Of this process.
    """
    if threads:
        torch.set_num_threads(threads)
    loaded = load_language_model(checkpoint)
    model, tokenizer = loaded.model, loaded.tokenizer
    assert isinstance(model, AttractorForCausalLM), "give an attractor's checkpoint"
    model.config.max_position_embeddings = max(2048, model.config.max_position_embeddings)
    _write_with_cache(model)
    texts = [encode(tokenizer, text[:12_000]) for text in islice(read_held_out((data,), "text"), 12)]
    long = torch.cat(texts)[None, :1024]
    rows = torch.cat([text[: len(text) // 256 * 256] for text in texts]).view(-1, 256)[:num_rows]
    plain, few = without_solver(model), max(3, repeats // 5)
    measurements: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "again": lambda: [recomputed(model, long, repeats)],
        "late": lambda: [by_position(model, long, repeats)],
        "plain": lambda: against_plain(model, plain, long[:, :128], repeats),
        "sparse": lambda: [sparse_and_dense(model, rows, tolerance, few) for tolerance in tolerances],
    }
    console = Console(width=150)
    for name in only:
        with torch.no_grad():
            found = measurements[name]()
        for row in found:
            console.print(f"{name}: " + ", ".join(f"{k} {_short(v)}" for k, v in row.items()), highlight=False)
        setting = {
            "command": f"python -m benchmarks.decode CHECKPOINT --data TEXT --only {name} --repeats {repeats}",
            "environment": environment(),
            "weights": sum(p.numel() for p in model.parameters()),
            "layers": [model.model.num_backbone_layers, model.config.num_attractor_layers],
            "tolerance": model.config.tolerance,
        }
        write_json(OUT / f"{name}.json", {**setting, "rows": found})


def without_solver(model: AttractorForCausalLM) -> AttractorForCausalLM:
    """The plain Transformer of the same layers: what one evaluation computes, without a solver."""
    config = AttractorConfig.from_dict(model.config.to_dict() | {"num_attractor_layers": 0})
    plain = AttractorForCausalLM(config).eval().to(model.device)
    plain.load_state_dict(fold_gates(model, config.num_hidden_layers))
    _write_with_cache(plain)
    return plain


def _write_with_cache(model: AttractorForCausalLM) -> None:
    """Every text is cached and of one length, whatever the checkpoint's settings are."""
    model.config.use_cache = model.generation_config.use_cache = True
    model.generation_config.eos_token_id = None


def recomputed(model: Any, ids: Tensor, repeats: int) -> Timed:
    """The next token after a long context: from the cache, and by solving the complete context again."""
    cache = DynamicCache()
    model(ids[:, :-1], cache=cache)

    def cached() -> None:
        model(ids[:, -1:], cache=cache, logits_to_keep=1)
        for layer in cache.layers:
            layer.crop(-1)

    return compare({"again": lambda: model(ids, logits_to_keep=1), "cached": cached}, repeats)


def by_position(model: Any, ids: Tensor, repeats: int) -> Timed:
    """One token late and early in a text."""
    steps: dict[str, Callable[[], None]] = {}
    for place in (1000, 50):
        cache = DynamicCache()
        model(ids[:, : place - 1], cache=cache)

        def step(cache: DynamicCache = cache, place: int = place) -> None:
            model(ids[:, place - 1 : place], cache=cache, logits_to_keep=1)
            for layer in cache.layers:
                layer.crop(-1)

        steps[f"token {place}"] = step
    return compare(steps, 4 * repeats)


def against_plain(model: Any, plain: Any, ids: Tensor, repeats: int) -> list[dict[str, Any]]:
    """``generate`` of 64 tokens: by tolerance, at small depths, and by the plain Transformer."""

    def write(which: Any, **budget: Any) -> Callable[[], None]:
        settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 64, "do_sample": False, **budget}
        return lambda: which.generate(ids, **settings)

    found = []
    budgets: list[dict[str, Any]] = [
        *({"tolerance": tolerance} for tolerance in (3e-1, 1e-1, *TOLERANCES)),
        *({"depth": n} for n in (2, 1, 0)),
    ]
    for budget in budgets:
        sides = {"attractor": write(model, **budget), "plain": write(plain)}
        found.append({**budget, **compare(sides, repeats)})
    return found


def sparse_and_dense(model: Any, rows: Tensor, tolerance: float, repeats: int) -> dict[str, Any]:
    """The attractor on held-out rows: only active tokens, and all tokens until all have converged."""
    output = model(rows, tolerance=tolerance, logits_to_keep=1)
    context = model.model.make_context(output.hidden)
    stop = Tolerance(rtol=tolerance, max_evaluations=64, min_evaluations=model.config.min_evaluations)
    solver = Anderson(window=model.config.window)
    last: dict[str, Solution] = {}

    def dense() -> None:
        update = model.model.update(output.proposal, context)
        last["dense"] = fixed_point(update, output.proposal, solver=solver, stop=stop, causal=True)

    def sparse() -> None:
        last["sparse"] = model.model.solve(output.proposal, context, stop)

    times = compare({"dense": dense, "sparse": sparse}, repeats)
    per_token = last["sparse"].evaluations.float().mean().item()
    difference = (last["sparse"].value - last["dense"].value).norm(dim=-1) / last["dense"].value.norm(dim=-1)
    return {
        "tolerance": tolerance,
        **times,
        "evaluations dense": last["dense"].outcome.calls,
        "evaluations per token": per_token,
        "ratio of evaluations": last["dense"].outcome.calls / per_token,
        "converged": 1 - last["sparse"].outcome.num_open / rows.numel(),
        "largest difference": difference.max().item(),
    }


def compare(sides: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter) -> Timed:
    """Median times of sides that take turns, and the ratio of the first two."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in track(range(repeats + 1), description=" and ".join(sides), transient=True):
        for name, side in sides.items():
            begun = clock()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:  # the first warms up
                times[name].append(clock() - begun)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first, second, *_ = medians.values()
    return {**{f"{name}, ms": 1000 * value for name, value in medians.items()}, "ratio": first / second}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_command(main)
