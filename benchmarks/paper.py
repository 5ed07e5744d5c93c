"""The tables and figures of "Solve the Loop" (arXiv:2605.12466), one by one, at the scale of the machine at hand.

    python -m benchmarks.paper table4 --threads 1            # tiny, three seeds; at most half an hour on two cores
    python -m benchmarks.paper table1 --scale 140m --data tokens --bundle EVAL --minutes 60

Items: table1 to table6, figure1 to figure7; ``benchmarks/paper_items.py`` says what each holds. Missing sides are
trained, one after the other; what is stored is not trained again, and a run that was paused continues. The same command
in a second terminal, with the same ``--out``, trains the sides that the first one has not begun: so two cores, or two
GPUs, share the work. Every side's run is a file in ``runs/``; an item is a folder with a table (Markdown and JSON) and,
for a figure, a PNG.

Without ``--data``, a folder of ``attractor data prepare``, the text is Python's standard library. Numbers are means
over seeds with half the range. Equal FLOPs: the training loss where each side has spent half of the FLOPs of the
cheapest side's run, so that the learning rate is still constant in all.
"""

import itertools
import json
import math
import shutil
import statistics
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args
from unittest.mock import patch

import torch
from matplotlib.ticker import FormatStrFormatter, LogLocator

from attractor.config import to_dict
from attractor.data.puzzle import PUZZLES
from attractor.data.text import Shards, read_held_out
from attractor.errors import DivergedError
from attractor.evaluation import core, lambada, score_text
from attractor.evaluation.bundle import read_tasks
from attractor.evaluation.text import encode
from attractor.evaluation.trajectories import trajectories
from attractor.experiment.cost.step_benchmark import StepBenchmark
from attractor.experiment.environment import environment
from attractor.experiment.language import train_language
from attractor.experiment.prepare import prepare_text
from attractor.experiment.puzzle_evaluation import evaluate_puzzles
from attractor.experiment.puzzles import train_reasoner, training_puzzles
from attractor.files import json_safe, write_json, write_text
from attractor.plots.style import COLOURS, new_figure, save, use_log_scale
from attractor.progress import TrainingProgress
from attractor.training import Preemption
from benchmarks import changed_setting, with_spread
from benchmarks.command import TRIES, claim, run_command
from benchmarks.paper_items import (
    AXES,
    COLUMNS,
    DEPTHS,
    EVALUATIONS,
    ITEMS,
    LABELS,
    REASONERS,
    REFERENCE,
    SCALES,
    Item,
    language_recipe,
    reasoner_recipe,
)

OUT = Path("results/paper")
CHECKPOINTS = TRIES / "paper-checkpoints"
CHARACTERS, NUM_DOCUMENTS = 5_000, 8  # of held-out text
NUM_TEST = 200  # puzzles
FEWSHOT_SEEDS = (1234, 2345, 3456)  # of CORE, the authors'
Run = dict[str, Any]
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
        bundle: An evaluation bundle, for LAMBADA and, from 60m up, CORE and CORE-Extended.
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
    wanted, trained, begin = [(side, seed) for seed in seeds for side in sides], 0, time.monotonic()
    with Preemption(seconds=None if minutes is None else 60 * minutes) as pause:
        for number, (side, seed) in enumerate(wanted, start=1):
            is_stored = _train(side, scale, seed, data, bundle, pause)
            if is_stored is None:
                continue
            if not is_stored:
                print(f"paused after {number - 1} of {len(wanted)} runs; the same command continues.")
                break
            trained += 1
            left = (time.monotonic() - begin) / trained * (len(wanted) - number) / 60
            print(f"{number} of {len(wanted)} runs, {side} {seed}: at most {left:.0f} min left", flush=True)
    for name in names:
        write(name, scale, seeds)


def _train(side: str, scale: str, seed: int, data: Any, bundle: Path | None, pause: Preemption) -> bool | None:
    """Train a run and return whether it ended and is stored; None if it was stored before, or if another process has it."""
    is_reasoner = side in REASONERS
    settings = _reasoner_settings(side, scale, seed) if is_reasoner else _settings(side, scale, seed, data, bundle)
    plain = {name: to_dict(value) if is_dataclass(value) else value for name, value in settings.items()}
    stored, text = f"{scale}-{side}-{seed}", json.dumps(json_safe(plain))
    folder = CHECKPOINTS / f"{stored}-{zlib.crc32(text.encode()):08x}"
    with claim(CHECKPOINTS, folder.name) as is_ours:
        found = _stored(stored)
        if not is_ours or (found and not (why := changed_setting(found["settings"], json.loads(text), settings))):
            return None
        if found:
            print(f"{stored}: trained again; {why}")
        loop: dict[str, Any] = {"should_pause": pause, "resume": (folder / "latest").exists()}
        if is_reasoner:
            run = _reasoner(side, scale, seed, folder, loop)
        else:
            run = _language(side, scale, seed, data, bundle, folder, loop)
        if run:  # not paused
            (OUT / "runs").mkdir(parents=True, exist_ok=True)
            write_json(OUT / "runs" / f"{stored}.json", run | {"settings": plain, "environment": environment()})
            shutil.rmtree(folder)
        return bool(run)


def _settings(side: str, scale: str, seed: int, data: Path, bundle: Path | None) -> Run:
    shards = Shards(data, "train")
    text = {"tokenizer": shards.tokenizer, "tokens": shards.num_tokens}
    return {
        "recipe": language_recipe(side, scale, seed),
        "text": text,
        "bundle": bundle is not None and "core-extended",
    }


def _language(side: str, scale: str, seed: int, data: Any, bundle: Path | None, folder: Path, loop: Any) -> Run:
    """Train a language side, unless it is paused, and measure it."""
    recipe, begin = language_recipe(side, scale, seed), time.process_time()
    try:
        with TrainingProgress(f"{scale} {side} {seed}") as bar:
            loaded = train_language(recipe, data, folder, callbacks=[bar], **loop)
    except DivergedError as error:  # a result too: the other sides go on
        return {"diverged": [str(error)]}
    if loop["should_pause"].requested:
        return {}
    seconds = time.process_time() - begin
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = [line for line in log if "tokens" in line]  # a report of a skipped step counts none
    model, tokenizer, length = loaded.model.eval(), loaded.tokenizer, recipe.text.length
    texts = [text[:CHARACTERS] for text in read_held_out((data,))][:NUM_DOCUMENTS]
    score = score_text(model, tokenizer, texts, length=length)
    flops, curve = 0.0, []
    for line, before in zip(log, [{"tokens": 0}, *log], strict=False):
        calls = line.get("calls", 1.0)
        flops += (line["tokens"] - before["tokens"]) * model.flops_per_token(length, calls, training=True)
        curve.append({"step": line["step"], "loss": line["loss"], "flops": flops, "calls": calls})
    step, tenth = StepBenchmark(replace(recipe, model=model.config)), max(1, len(curve) // 10)
    step.step()
    run = {
        "ppl": score.perplexity, "bits_per_byte": score.bits_per_byte, "evaluations": score.evaluations,
        "converged": score.converged_fraction, "weights": sum(p.numel() for p in model.parameters()),
        "training_flops": flops, "memory": step.peak_memory(), "step_time": seconds / log[-1]["step"], "curve": curve,
        "first_calls": statistics.mean(line["calls"] for line in curve[:tenth]),
        "calls": statistics.mean(line["calls"] for line in curve[-tenth:]),
    }  # fmt: skip
    if side in ITEMS["figure7"].sides:
        found = {d: score_text(model, tokenizer, texts, length=length, depth=d).perplexity for d in DEPTHS}
        run |= {f"ppl_{d}": ppl for d, ppl in found.items()}
        run["depths"] = [{"depth": d, "ppl": ppl} for d, ppl in found.items()]
    if side in ITEMS["figure6"].sides:
        windows = [encode(tokenizer, text)[:length] for text in texts]
        paths = trajectories(model, windows, depth=16, num=6).paths.transpose(0, 1).tolist()
        run["paths"] = [{"x": x, "y": y} for path in paths for x, y in (*path, (None, None))]  # None: a line ends
    if bundle is not None:
        run["lambada_ppl"] = lambada(model, tokenizer, bundle, limit=500 if scale == "tiny" else None).perplexity
        if scale not in ("tiny", "small"):
            scores = core(model, tokenizer, bundle, extended=True, fewshot_seeds=FEWSHOT_SEEDS)
            own = {task.label for task in read_tasks(bundle)}  # CORE's, which CORE-Extended has too
            of_core = replace(scores, tasks=tuple(task for task in scores.tasks if task.label in own))
            run |= {"core_extended": scores.value, "missing_tasks": scores.missing}
            run |= {"core": of_core.value} if of_core.tasks else {}
    return run


def _reasoner_settings(side: str, scale: str, seed: int) -> Run:
    return {task: reasoner_recipe(side, task, scale, seed) for task in ("sudoku", "maze")}


def _reasoner(side: str, scale: str, seed: int, folder: Path, loop: Any) -> Run:
    """Train a reasoner on Sudokus and on mazes, unless it is paused, and measure it on others at depth 16."""
    run: Run = {}
    for task in ("sudoku", "maze"):
        recipe = reasoner_recipe(side, task, scale, seed)
        like = to_dict(recipe.data) | {"seed": 1_000_000}
        like.pop("num_puzzles")
        test = PUZZLES[recipe.kind].generate(NUM_TEST, exclude=training_puzzles(recipe), **like)
        settings = loop | {"resume": (folder / task / "latest").exists(), "held_out": test[: NUM_TEST // 10]}
        try:
            with TrainingProgress(f"{scale} {side} {task} {seed}") as bar:
                loaded = train_reasoner(recipe, folder / task, callbacks=[bar], **settings)
        except DivergedError as error:
            run["diverged"] = [*run.get("diverged", ()), f"{task}: {error}"]
            continue
        if loop["should_pause"].requested:
            return {}
        how: dict[str, Any] = {"depths": (16,), "breadths": (1,), "selections": ("residual",), "batch_size": 100}
        run[task] = evaluate_puzzles(loaded, test, seed=seed, **how)["exact_by_residual"][0][0]
        run["weights"] = sum(p.numel() for p in loaded.model.parameters())
    return run


def _stored(name: str) -> Run | None:
    file = OUT / "runs" / f"{name}.json"
    found: Run | None = json.loads(file.read_text()) if file.is_file() else None
    return found


def _default_text() -> Path:
    """Return the prepared text of Python's standard library."""
    folder = TRIES / "paper-text"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as own:  # another process may prepare it, too
            source = Path(own) / "text.jsonl"
            files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
            source.write_text("".join(json.dumps({"text": f.read_text(errors="replace")}) + "\n" for f in files))
            prepare_text([source], Path(own) / "tokens", val_fraction=0.05, vocab_size=2048)
            with suppress(OSError):  # the other one was sooner
                (Path(own) / "tokens").rename(folder)
    return folder


def _memory(scale: str) -> dict[str, list[Run]]:
    """Measure the peak memory of steps with forced numbers of evaluations; the looped model tracks all of them."""
    found: dict[str, list[Run]] = {"attractor": [{"steps": []}], "looped": [{"steps": []}]}
    with patch.object(torch, "poisson", lambda rate: rate):  # the mean number of iterations
        for (side, (run,)), n in itertools.product(found.items(), EVALUATIONS):
            forced = {"tolerance": 1e-30, "min_evaluations": n, "max_evaluations": n, "vocab_size": 2048}
            forced |= {"mean_recurrence": n, "tracked_recurrence": n} if side == "looped" else {}
            recipe = language_recipe(side, scale, 0)
            step = StepBenchmark(replace(recipe, model=type(recipe.model)(**recipe.model.to_dict() | forced)))
            step.step()
            run[f"memory_{n}"] = step.peak_memory()
            run["steps"].append({"forced": n, "bytes": run[f"memory_{n}"]})
    return found


def write(name: str, scale: str, seeds: Sequence[int]) -> None:
    """Write the table, and the picture of a figure, of the runs that are there."""
    item, folder = ITEMS[name], OUT / name
    stored = {
        side: [run | {"seed": s} for s in seeds if (run := _stored(f"{scale}-{side}-{s}"))] for side in item.sides
    }
    runs = {side: [run for run in found if "weights" in run] for side, found in stored.items()}  # that ended
    runs = {side: found for side, found in runs.items() if found} if item.sides else _memory(scale)
    if not runs and not any(stored.values()):
        print(f"{name}: nothing is stored yet.")
        return
    texts = {str(run["settings"].get("text")) for found in runs.values() for run in found if "settings" in run}
    if len(texts) > 1:
        raise SystemExit(
            f"{OUT / 'runs'}: holds runs on different texts; give another --out, or the --data of the others."
        )
    _relate(runs)
    folder.mkdir(parents=True, exist_ok=True)
    known = item.published.get(scale) or next(iter(item.published.values()), {})
    values = {side: {c: _values(found, c) for c in item.columns} for side, found in runs.items()}
    columns = [c for c in item.columns if any(row[c] for row in values.values())]
    heads, lines = ["side"], []
    for column in columns:
        heads += [COLUMNS[column][0], *(["paper"] if any(column in row for row in known.values()) else [])]
    for side, row in values.items():
        cells = [LABELS[side]]
        for column in columns:
            cells.append(_mean(row[column], column))
            if any(column in each for each in known.values()):
                cells.append(f"{known[side][column]:g}" if column in known.get(side, {}) else "–")
        lines.append(f"| {' | '.join([*cells, str(len(runs[side]))])} |")
    table = "\n".join([f"| {' | '.join([*heads, 'seeds'])} |", "|---" * (len(heads) + 1) + "|", *lines])
    command = f"`python -m benchmarks.paper {name} --scale {scale} --seeds {' '.join(map(str, seeds))}`"
    missing = ", ".join(LABELS[side] for side in item.sides if not stored[side])
    diverged = [
        f"{LABELS[s]} ({n} of {len(f)} seeds)" for s, f in stored.items() if (n := sum("diverged" in r for r in f))
    ]
    table += f"\n\nNot trained yet: {missing}." if missing else ""
    table += f"\n\nDiverged in training: {', '.join(diverged)}." if diverged else ""
    absent = sorted({label for found in runs.values() for run in found for label in run.get("missing_tasks", ())})
    table += f"\n\nNot in the bundle: {', '.join(absent)}." if absent else ""
    parts = [f"# {name}: {item.title} ({scale})", item.note, table, _orders(runs, known, item), command]
    write_text(folder / f"{scale}.md", "\n\n".join(part for part in parts if part) + "\n")
    rows = [{"side": side, "paper": known.get(side, {}), "here": row} for side, row in values.items()]
    write_json(folder / f"{scale}.json", {"title": item.title, "scale": scale, "rows": rows})
    if item.axes and runs:
        _draw(item, runs, folder / f"{scale}.png")
    print((folder / f"{scale}.md").read_text())


def _relate(runs: dict[str, list[Run]]) -> None:
    """Make memory and time relative to the one-step gradient's, and read the losses at equal FLOPs off the curves."""
    flat = [run for found in runs.values() for run in found if "curve" in run]
    for column in ("memory", "step_time"):
        unit = statistics.mean(run[column] for run in runs[REFERENCE]) if REFERENCE in runs else None
        for run in flat:
            run[column] = None if unit is None else run[column] / unit
    half = min((run["training_flops"] for run in flat if run["training_flops"]), default=0) / 2
    for run in flat:
        if spent := [line["loss"] for line in run["curve"] if line["flops"] and line["flops"] <= half]:
            run["equal_flops"] = statistics.mean(spent[-3:])


def _values(found: list[Run], column: str) -> list[float]:
    return [run[column] / COLUMNS[column][2] for run in found if run.get(column) is not None]


def _mean(values: list[float], column: str) -> str:
    if not values:
        return "–"
    spread = (max(values) - min(values)) / 2 if len(values) > 1 and column != "weights" else None
    return with_spread(statistics.mean(values), spread, COLUMNS[column][1])


def _orders(runs: dict[str, list[Run]], known: dict[str, dict[str, float]], item: Item) -> str:
    """Say of neighbours in the paper's order by the first column whether the difference has the same sign here.

    Differences are those of runs with one seed.
    """
    column = item.columns[0]
    found = {
        side: {run.get("seed"): run[column] for run in each if run.get(column) is not None}
        for side, each in runs.items()
    }
    ranked = sorted((s for s in runs if column in known.get(s, {})), key=lambda s: known[s][column])
    lines = []
    for low, high in itertools.pairwise(ranked):
        differences = [
            (found[high][seed] - found[low][seed]) / COLUMNS[column][2] for seed in found[low] if seed in found[high]
        ]
        if known[low][column] == known[high][column] or not differences:
            continue
        signs = {d > 0 for d in differences}
        verdict = (
            "not resolved" if len(signs) > 1 or 0 in differences else "holds" if signs == {True} else "does not hold"
        )
        lines.append(
            f"- {COLUMNS[column][0]}, *{LABELS[high]}* less *{LABELS[low]}*: paper "
            f"{known[high][column] - known[low][column]:+.2f}, here {min(differences):+.2f} to {max(differences):+.2f} "
            f"(seeds: {len(differences)}): {verdict}"
        )
    return "\n".join(lines)


def _draw(item: Item, runs: dict[str, list[Run]], file: Path) -> None:
    """Draw the axes of a figure: one line, or one point, for each side and seed."""
    figure, axes = new_figure(len(item.axes))
    for each, (points, x, y, only) in zip(axes, item.axes, strict=True):
        for number, (side, found) in enumerate(runs.items()):
            for run in found if side in (only.split() or runs) and points in ("", *found[0]) else ():
                drawn = run[points] if points else [run]
                xs, ys = ([math.nan if p.get(n) is None else p[n] for p in drawn] for n in (x, y))
                label = LABELS[side].split(" (")[0] if run is found[0] else None
                marker = "." if points == "paths" else "" if len(drawn) > 10 else "os^Dv*Xd"[number]
                style = {"color": COLOURS[number % len(COLOURS)], "marker": marker, "alpha": 0.8, "label": label}
                each.plot(xs, ys, linestyle="--" if number >= len(COLOURS) else "-", **style)
        each.set(xlabel=AXES.get(x, x), ylabel=AXES.get(y, y))
        each.legend(fontsize=7)
        if points == "depths":
            use_log_scale(each)
            each.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            each.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    save(figure, file)


if __name__ == "__main__":
    run_command(paper)
