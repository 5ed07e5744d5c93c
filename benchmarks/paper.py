"""The tables and figures of "Solve the Loop" (arXiv:2605.12466), one by one, at the scale of the machine at hand.

    python -m benchmarks.paper table4                        # tiny: half an hour on two cores with three seeds
    python -m benchmarks.paper table1 --scale 140m --data tokens --bundle EVAL --minutes 60

Items: table1 to table6, figure1 to figure7; ``benchmarks/paper_items.py`` says what each holds. Missing sides are
trained, one after the other; what is stored is not trained again, and a run that was paused continues. Every side's
run is a file in ``runs/``, an item is a folder with a table (Markdown and JSON) and, for a figure, a PNG.

Without ``--data``, a folder of ``attractor data prepare``, the text is Python's standard library. Equal FLOPs: the
training loss where each side has spent half of the FLOPs of the cheapest side's run, so that all learning rates are
still constant. Numbers are means over seeds, with half the range.
"""

import itertools
import json
import shutil
import statistics
import sysconfig
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from attractor.config import to_dict
from attractor.data.puzzle import PUZZLES
from attractor.data.text import Shards, read_held_out
from attractor.evaluation import core, lambada, score_text
from attractor.evaluation.text import encode
from attractor.evaluation.trajectories import trajectories
from attractor.experiment.cost.step_benchmark import StepBenchmark
from attractor.experiment.environment import environment
from attractor.experiment.language import train_language
from attractor.experiment.prepare import prepare_text
from attractor.experiment.puzzle_evaluation import evaluate_puzzles
from attractor.experiment.puzzles import train_reasoner, training_puzzles
from attractor.files import json_safe, write_json, write_text
from attractor.progress import TrainingProgress
from attractor.training import Preemption
from benchmarks import with_spread
from benchmarks.command import TRIES, run_command
from benchmarks.paper_figures import draw
from benchmarks.paper_items import ITEMS, LABELS, REASONERS, REFERENCE, SCALES, Item, language_recipe, reasoner_recipe

OUT = Path("results/paper")
CHARACTERS, NUM_DOCUMENTS = 5_000, 8  # of held-out text
DEPTHS = (0, 1, 2, 4, 8)
EVALUATIONS = (4, 16, 64)  # forced, for figure5
COLUMNS = {  # heading, digits, what a unit is
    "ppl": ("perplexity", 2, 1), "bits_per_byte": ("bits per byte", 4, 1), "lambada_ppl": ("LAMBADA perplexity", 0, 1),
    "core": ("CORE, %", 2, 0.01), "evaluations": ("evaluations", 1, 1), "converged": ("converged, %", 1, 0.01),
    "weights": ("weights, millions", 3, 1e6), "training_flops": ("training TFLOP", 2, 1e12),
    "equal_flops": ("loss at equal FLOPs", 3, 1), "memory": ("memory of a step", 2, 1), "step_time": ("time", 2, 1),
    "sudoku": ("Sudoku, %", 1, 0.01), "maze": ("maze, %", 1, 0.01), "calls": ("evaluations in training", 1, 1),
    "first_calls": ("in its first tenth", 1, 1),
} | {f"ppl_{d}": (f"after {d}", 2, 1) for d in DEPTHS} | {
    f"memory_{n}": (f"{n} evaluations", 0, 1e6) for n in EVALUATIONS
}  # fmt: skip
RISING = ("core", "sudoku", "maze")  # where more is better
Names = Literal["all", "table1", "table2", "table3", "table4", "table5", "table6",
                "figure1", "figure2", "figure3", "figure4", "figure5", "figure6", "figure7"]  # fmt: skip


def paper(
    items: tuple[Names, ...] = ("all",),
    /,
    scale: str = "tiny",
    seeds: tuple[int, ...] = (0, 1, 2),
    data: Path | None = None,
    bundle: Path | None = None,
    minutes: float | None = None,
    threads: int | None = None,
) -> None:
    """Train what is missing, and write tables and figures.

    Args:
        items: Tables and figures.
        scale: tiny, small, 60m, 140m, 370m, 770m or 1.3b.
        seeds: Of weights and of the order of the text.
        data: Prepared text.
        bundle: An evaluation bundle, for LAMBADA and, from 60m up, CORE.
        minutes: Pause after so many; the same command then continues.
        threads: Of this process.
    """
    if threads:
        torch.set_num_threads(threads)
    if scale not in SCALES:
        raise SystemExit(f"--scale {scale}: choose one of {', '.join(SCALES)}.")
    names = [name for name in get_args(Names)[1:] if name in items or "all" in items]
    sides = list(dict.fromkeys(side for name in names for side in ITEMS[name].sides))
    data = _default_text() if data is None and not REASONERS.keys() >= set(sides) else data
    wanted = [(side, seed) for seed in seeds for side in sides]
    pause, begin = Preemption(seconds=None if minutes is None else 60 * minutes), time.monotonic()
    with pause:
        for number, (side, seed) in enumerate(wanted, start=1):
            done = reasoner(side, scale, seed, pause) if side in REASONERS else language(
                side, scale, seed, data, bundle, pause
            )  # fmt: skip
            if done is None:
                print(f"paused after {number - 1} of {len(wanted)} runs; the same command continues.")
                break
            left = (time.monotonic() - begin) / number * (len(wanted) - number) / 60
            print(f"{number} of {len(wanted)} runs, {side} {seed}: at most {left:.0f} min left", flush=True)
    for name in names:
        write(name, scale, seeds)


def language(
    side: str, scale: str, seed: int, data: Path, bundle: Path | None, pause: Preemption
) -> dict[str, Any] | None:
    """Return the run of a language side: the stored one, or a new one; None if it was paused."""
    recipe = language_recipe(side, scale, seed)
    shards = Shards(data, "train")
    settings = {"recipe": to_dict(recipe), "text": {"tokenizer": shards.tokenizer, "tokens": shards.num_tokens}}
    folder, found = _begin(f"{scale}-{side}-{seed}", settings, pause)
    if found is not None or pause.requested:
        return found
    with TrainingProgress(f"{scale} {side} {seed}") as bar:
        begin = time.process_time()
        loop: dict[str, Any] = {"callbacks": [bar], "should_pause": pause, "resume": folder.is_dir()}
        loaded = train_language(recipe, data, folder, **loop)
        spent = time.process_time() - begin
    if pause.requested:
        return None
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    model, tokenizer, config, length = loaded.model.eval(), loaded.tokenizer, loaded.model.config, recipe.text.length
    texts = [text[:CHARACTERS] for text in read_held_out((data,))][:NUM_DOCUMENTS]
    score = score_text(model, tokenizer, texts, length=length)
    flops, curve = 0.0, []
    for line, before in zip(log, [{"tokens": 0}, *log], strict=False):
        each = model.flops_per_token(length, line.get("calls", 1.0), training=True)
        flops += (line["tokens"] - before["tokens"]) * each
        curve.append({"step": line["step"], "loss": line["loss"], "flops": flops, "calls": line.get("calls", 1.0)})
    step = StepBenchmark(replace(recipe, model=config))
    step.step()
    run = {
        "ppl": score.perplexity, "bits_per_byte": score.bits_per_byte, "evaluations": score.evaluations,
        "converged": score.converged_fraction, "weights": sum(p.numel() for p in model.parameters()),
        "training_flops": flops, "memory": step.peak_memory(), "step_time": spent / len(log),
        "calls": statistics.mean(line["calls"] for line in curve[-max(1, len(curve) // 10) :]),
        "first_calls": statistics.mean(line["calls"] for line in curve[: max(1, len(curve) // 10)]), "curve": curve,
    }  # fmt: skip
    if side in ITEMS["figure7"].sides:
        for depth in DEPTHS:
            run[f"ppl_{depth}"] = score_text(model, tokenizer, texts, length=length, depth=depth).perplexity
    if side in ITEMS["figure6"].sides:
        windows = [encode(tokenizer, text)[:length] for text in texts]
        run["paths"] = trajectories(model, windows, depth=16, num=6).paths.tolist()
    if bundle is not None:
        run["lambada_ppl"] = lambada(model, tokenizer, bundle, limit=500 if scale == "tiny" else None).perplexity
        run |= {} if scale in ("tiny", "small") else {"core": core(model, tokenizer, bundle).value}
    return _end(f"{scale}-{side}-{seed}", settings, run, folder)


def reasoner(side: str, scale: str, seed: int, pause: Preemption) -> dict[str, Any] | None:
    """Return the run of a reasoner on Sudokus and mazes: the stored one, or a new one; None if it was paused."""
    recipes = {task: reasoner_recipe(side, task, scale, seed) for task in ("sudoku", "maze")}
    settings = {task: to_dict(recipe) for task, recipe in recipes.items()}
    folder, found = _begin(f"{scale}-{side}-{seed}", settings, pause)
    if found is not None or pause.requested:
        return found
    run: dict[str, Any] = {}
    for task, recipe in recipes.items():
        train = training_puzzles(recipe)
        of = to_dict(recipe.data) | {"seed": 1_000_000, "num_puzzles": 200}
        test = PUZZLES[recipe.kind].generate(of.pop("num_puzzles"), exclude=train, **of)
        with TrainingProgress(f"{scale} {side} {task} {seed}") as bar:
            loop: dict[str, Any] = {"callbacks": [bar], "should_pause": pause, "resume": (folder / task).is_dir()}
            loaded = train_reasoner(recipe, folder / task, held_out=test[:20], **loop)
        if pause.requested:
            return None
        settled: Any = {"selections": ("residual",), "batch_size": 100, "seed": seed}
        figures = evaluate_puzzles(loaded, test, depths=(16,), breadths=(1,), **settled)
        run |= {task: figures["exact_by_residual"][0][0], "weights": sum(p.numel() for p in loaded.model.parameters())}
    return _end(f"{scale}-{side}-{seed}", settings, run, folder)


def _begin(name: str, settings: dict[str, Any], pause: Preemption) -> tuple[Path, dict[str, Any] | None]:
    """Return the folder of a run's checkpoints, and the stored run if it had the same settings."""
    found = _stored(name)
    text = json.dumps(json_safe(settings))
    is_same = found is not None and found["settings"] == json.loads(text)
    return TRIES / "paper-checkpoints" / f"{name}-{zlib.crc32(text.encode()):08x}", found if is_same else None


def _stored(name: str) -> dict[str, Any] | None:
    file = OUT / "runs" / f"{name}.json"
    found: dict[str, Any] | None = json.loads(file.read_text()) if file.is_file() else None
    return found


def _end(name: str, settings: dict[str, Any], run: dict[str, Any], folder: Path) -> dict[str, Any]:
    result = run | {"settings": settings, "environment": environment()}
    (OUT / "runs").mkdir(parents=True, exist_ok=True)
    write_json(OUT / "runs" / f"{name}.json", result)
    shutil.rmtree(folder)
    return result


def _default_text() -> Path:
    """Return the prepared text of Python's standard library."""
    folder = TRIES / "paper-text"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        source = folder.with_suffix(".jsonl")
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        source.write_text("".join(json.dumps({"text": f.read_text(errors="replace")}) + "\n" for f in files))
        prepare_text([source], folder, val_fraction=0.05, vocab_size=2048)
        source.unlink()
    return folder


def write(name: str, scale: str, seeds: Sequence[int]) -> None:
    """Write the table, and the picture of a figure, of the runs that are there."""
    item, folder = ITEMS[name], OUT / name
    runs = {side: [r for s in seeds if (r := _stored(f"{scale}-{side}-{s}")) is not None] for side in item.sides}
    runs = {side: found for side, found in runs.items() if found} if name != "figure5" else _memory(scale)
    if not runs:
        print(f"{name}: nothing is stored yet.")
        return
    texts = {json.dumps(run["settings"].get("text")) for found in runs.values() for run in found if "settings" in run}
    if len(texts - {"null"}) > 1:
        raise SystemExit(f"{OUT / 'runs'}: holds runs on different texts; give another --out, or the --data of all.")
    _relate(runs)
    values = {s: {c: v for c in item.columns if (v := _values(found, c))} for s, found in runs.items()}
    known = item.by_scale.get(scale, item.published)
    columns = [c for c in item.columns if any(c in row for row in values.values())]
    used = {side: len(found) for side, found in runs.items()}
    rows = [
        {"side": LABELS[side], "seeds": used[side], **{c: row.get(c) for c in columns}, "paper": known.get(side, {})}
        for side, row in values.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{scale}.json", {"title": item.title, "scale": scale, "rows": rows})
    if name.startswith("figure"):
        draw(name, runs, folder / f"{scale}.png")
    heads = [h for c in columns for h in ((_head(c), "paper") if any(c in k for k in known.values()) else (_head(c),))]
    lines = ["| side | " + " | ".join(heads) + " | seeds |", "|---" * (len(heads) + 2) + "|"]
    for side, row in values.items():
        cells = [LABELS[side]]
        for c in columns:
            cells.append(_mean(row.get(c), c))
            if any(c in k for k in known.values()):
                cells.append(f"{known[side][c]:g}" if c in known.get(side, {}) else "–")
        lines.append("| " + " | ".join([*cells, str(used[side])]) + " |")
    text = [f"# {name}: {item.title} ({scale})", item.note, "\n".join(lines), "\n".join(_orders(values, known, item))]
    command = f"`python -m benchmarks.paper {name} --scale {scale} --seeds {' '.join(map(str, seeds))}`"
    write_text(folder / f"{scale}.md", "\n\n".join(part for part in [*text, command] if part) + "\n")
    print((folder / f"{scale}.md").read_text())


def _memory(scale: str) -> dict[str, list[dict[str, Any]]]:
    """Measure the peak memory of steps with forced numbers of evaluations; the looped model tracks all of them."""
    found: dict[str, list[dict[str, Any]]] = {"attractor": [{}], "looped": [{}]}
    for side, (row,) in found.items():
        for n in EVALUATIONS:
            forced = {"tolerance": 1e-30, "min_evaluations": n, "max_evaluations": n, "vocab_size": 2048}
            forced |= {"mean_recurrence": n, "tracked_recurrence": n} if side == "looped" else {}
            recipe = language_recipe(side, scale, 0)
            recipe = replace(recipe, model=type(recipe.model).from_dict(recipe.model.to_dict() | forced))
            draws, torch.poisson = torch.poisson, lambda rate: rate  # the mean number of iterations
            try:
                step = StepBenchmark(recipe)
                step.step()
                row[f"memory_{n}"] = step.peak_memory()
            finally:
                torch.poisson = draws
    return found


def _relate(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Make memory and time relative to the one-step gradient's, and read the losses at equal FLOPs off the curves."""
    flat = [run for found in runs.values() for run in found if "curve" in run]
    totals = [run["training_flops"] for run in flat if run["training_flops"]]
    for column in ("memory", "step_time") if REFERENCE in runs else ():
        unit = statistics.mean(run[column] for run in runs[REFERENCE])
        for run in flat:
            run[column] /= unit
    for run in flat:
        spent = [line for line in run["curve"] if line["flops"] and line["flops"] <= min(totals) / 2]
        if spent:
            run["equal_flops"] = statistics.mean(line["loss"] for line in spent[-2:])


def _values(found: list[dict[str, Any]], column: str) -> list[float]:
    return [run[column] / COLUMNS[column][2] for run in found if run.get(column) is not None]


def _head(column: str) -> str:
    return COLUMNS[column][0]


def _mean(values: list[float] | None, column: str) -> str:
    if not values:
        return "–"
    spread = (max(values) - min(values)) / 2 if len(values) > 1 and column != "weights" else None
    return with_spread(statistics.mean(values), spread, COLUMNS[column][1])


def _orders(values: dict[str, Any], known: dict[str, dict[str, float]], item: Item) -> list[str]:
    """Say of neighbours in the paper's order by its first column whether the difference has the same sign here."""
    column = next((c for c in item.columns if any(c in row for row in known.values()) and c != "weights"), None)
    if column is None:
        return []
    ranked = sorted((s for s in values if column in known.get(s, {})), key=lambda s: known[s][column])
    lines = []
    for low, high in itertools.pairwise(ranked):
        differences = [b - a for a, b in zip(values[low][column], values[high][column], strict=False)]
        signs = {d > 0 for d in differences}
        verdict = "not resolved" if len(signs) > 1 else "holds" if signs == {True} else "is reversed"
        verdict += " (one seed)" if len(differences) == 1 else f" in {len(differences)} seeds"
        spread = f"{min(differences):+.2f} to {max(differences):+.2f}"
        wanted = f"{known[high][column] - known[low][column]:+.2f}"
        lines.append(
            f"- {_head(column)}, *{LABELS[high]}* less *{LABELS[low]}*: paper {wanted}, here {spread}: {verdict}."
        )
    return lines


if __name__ == "__main__":
    run_command(paper)
