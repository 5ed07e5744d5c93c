"""Cases for puzzles, their models and recipes."""

import random
from dataclasses import replace
from pathlib import Path

from tests.fuzz.case import TEXTS, Case, damage, some_options

from attractor.data import puzzles, sudoku
from attractor.experiment.puzzles import train_reasoner
from attractor.recipes import MazeDataConfig, SudokuDataConfig, maze
from attractor.recipes import sudoku as sudoku_recipe
from attractor.training import TrainConfig

OPTIONS = {
    "demo": ["--minutes", "--seed"],
    "solve": ["--depth", "--tolerance", "--max-evaluations", "--breadth", "--seed", "--gif"],
    "cost": ["--set", "--evaluations", "--world-size", "--strategy", "--out"],
    "train": ["--set", "--data", "--init", "--out", "--pause-after", "--logger"],
    "evaluate": [
        "--data",
        "--depths",
        "--breadths",
        "--limit",
        "--batch-size",
        "--seed",
        "--out",
        "--tasks",
        "--bundle",
    ],
    "generate": ["--prompt", "--temperature", "--top-k", "--top-p", "--num-samples", "--depth"],
    "retrofit": ["--num-attractor-layers", "--gate-start", "--gate-limit"],
    "export": ["--depth", "--data"],
    "data sudoku": ["--size", "--num", "--num-test", "--clues", "--seed", "--train", "--test", "--num-train"],
    "data mazes": ["--style", "--size", "--num", "--min-path", "--max-path", "--seed", "--train", "--test"],
}
TINY = ["--size", "5", "--num", "2", "--num-test", "2"]  # no command runs for long
SETTINGS = [
    "train.num_steps", "train.seconds", "train.seed", "train.optimizer.lr", "train.optimizer.weight_decay",
    "train.guard.loss_spike",    "train.precision", "model.noise", "model.damping", "model.update.width",
    "model.type", "data.num_puzzles", "data.size", "model",
    "supervision.batch_size", "nothing", "train..seed", "",
]  # fmt: skip


def make_puzzles(folder: Path) -> None:
    """Write two tiny models and a folder of Sudokus."""
    tiny = replace(maze(), data=MazeDataConfig(num_puzzles=8, size=7), train=TrainConfig(num_steps=1))
    train_reasoner(
        replace(tiny, model=replace(tiny.model, update=replace(tiny.model.update, width=8))), folder / "maze"
    )
    small = sudoku_recipe(6)
    network = replace(small.model.update.network, width=16, hidden=16, cell_hidden=16)
    model = replace(small.model, update=replace(small.model.update, network=network))
    data = SudokuDataConfig(num_puzzles=8, size=4)
    train_reasoner(replace(small, model=model, data=data, train=TrainConfig(num_steps=1)), folder / "sudoku")
    puzzles.write(folder / "puzzles", {name: sudoku.generate(4, size=4, seed=0) for name in ("train", "test")})


def _options(rng: random.Random) -> Case:
    command = rng.choice(list(OPTIONS))
    positional = {
        "data": ["--out", "new", *TINY],
        "solve": ["maze", "maze.txt"],
        "export": ["maze", "new"],
        "retrofit": ["maze", "new"],
        "demo": ["--out", "puzzles"],
        "cost": ["maze", "--no-measure"],
        "train": ["maze", "--out", "new", "--pause-after", "0.01"],
    }
    first = positional.get(command.split()[0], ["maze"])
    return Case([*command.split(), *first, *some_options(OPTIONS[command], rng)])


def _settings(rng: random.Random) -> Case:
    setting = f"{rng.choice(SETTINGS)}={rng.choice(TEXTS)}"
    return Case(["train", "maze", "--out", "new", "--data", "nothing", "--set", setting])


def _texts(rng: random.Random) -> Case:
    characters = rng.choice(
        ["1234.-|+ \n0", "# SGo\n", "source,question,answer,rating\n1234.\"'\r", '{}[]":,\\0123 \n']
    )
    text = "".join(rng.choices(characters, k=rng.randint(0, 80)))
    data = rng.choice(
        [text.encode(), rng.randbytes(40), text.encode("utf-16"), b"question\n" + text.encode(), text.encode() * 50]
    )
    name = rng.choice(["in.txt", "in.csv", "IN.CSV", "x" * 16, "[x].txt", "a\nb.csv"])
    return Case(
        ["solve", rng.choice(["maze", "sudoku"]), name, "--depth", "2"],
        lambda folder: (folder / name).write_bytes(data) and None,
    )


def _damage(rng: random.Random) -> Case:
    source = rng.choice(["maze", "sudoku", "puzzles"])
    prepare, _ = damage(source, rng)
    commands = [["solve", "copy", "1234" + "." * 12, "--depth", "2"], ["evaluate", "copy", "--data", "puzzles"]]
    if source == "puzzles":
        commands = [["data", "verify", "copy"], ["evaluate", "sudoku", "--data", "copy", "--depths", "1"]]
    return Case(rng.choice(commands), prepare)


def _names(rng: random.Random) -> Case:
    name, place = rng.choice(TEXTS), rng.randint(0, 5)
    commands = [
        ["solve", name, "1234" * 4], ["solve", "sudoku", name, "--depth", "2"], ["data", "verify", name], ["evaluate", name],
        ["train", name, "--out", "new", "--pause-after", "0.01"],
        ["data", "sudoku", "--out", name, "--size", "4", "--num", "2", "--num-test", "2"],
    ]  # fmt: skip
    return Case(commands[place])


KINDS = (_options, _settings, _texts, _damage, _names)
