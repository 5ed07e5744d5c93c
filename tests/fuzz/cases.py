"""Generate cases of bad input, run each in this process, and return what is wrong with how it ended.

A case must end within a time limit with exit code 0 or 2, without a traceback, without control characters in its
output, and without a half-written file.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from attractor.cli import main
from attractor.data import puzzles, sudoku
from attractor.errors import printable
from attractor.experiment.puzzles import train_reasoner
from attractor.files import TEMPORARY
from attractor.recipes import MazeDataConfig, SudokuDataConfig, maze
from attractor.recipes import sudoku as sudoku_recipe
from attractor.training import TrainConfig

SECONDS = 30  # the limit of a case
TEXTS = [
    "", " ", "-", "--", ".", "..", "/", "//", "~", "[/x]", "[bold]", "\x1b[31m", "a\nb", "\0", "x" * 300, "x/" * 3000,
    "\u202eabc", "\udc80", "é中😀", "%s", "{0}", "$(x)", "*", "?", "null", "true", "nan", "inf", "-inf", "1e999", "-1", "0",
    "9" * 20, "9" * 5000, "1.5", "0x10", "[" * 5000, "{" * 5000, '{"a": 1}', "[1,2]", "none", "/dev/null", "/proc/self/mem",
    "loop", "pipe", "folder", "secret", "broken", "1234" * 4, "....34..12...." + "..", "#####\n#S G#\n#####", "owner/..",
]  # fmt: skip
OPTIONS = {
    "demo": ["--minutes", "--seed"],
    "solve": ["--depth", "--tolerance", "--max-evaluations", "--breadth", "--seed", "--gif"],
    "cost": ["--set", "--evaluations", "--world-size", "--strategy", "--json"],
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
    "generate": ["--prompt", "--temperature", "--top-k", "--top-p", "--num-samples", "--depth", "--num-draft"],
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


class TooLong(BaseException):
    """The time limit of a case."""


@dataclass(frozen=True)
class Case:
    """A command, and what is put into its folder before."""

    arguments: list[str]
    prepare: Callable[[Path], None] = lambda folder: None


def make_folder(folder: Path) -> None:
    """Write what cases use: two tiny models, a folder of Sudokus, and paths that are hard to read."""
    import attractor.models.language  # noqa: F401  the first import takes longer than a case may

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
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "broken").symlink_to("nowhere")
    (folder / "folder").mkdir()
    (folder / "secret").write_text("secret")
    (folder / "secret").chmod(0)


def generate(num: int, seed: int) -> Iterator[Case]:
    """Yield cases of all kinds in turn."""
    rng = random.Random(seed)
    kinds = (_options, _settings, _texts, _flips, _names)
    for index in range(num):
        yield kinds[index % len(kinds)](rng)


def _options(rng: random.Random) -> Case:
    command = rng.choice(list(OPTIONS))
    positional = {
        "data": ["--out", "new", *TINY],
        "solve": ["maze", "maze.txt"],
        "export": ["maze", "new"],
        "retrofit": ["maze", "new"],
    }
    first = positional.get(command.split()[0], ["maze"] if command != "demo" else ["--out", "puzzles"])
    options = [word for name in rng.sample(OPTIONS[command], rng.randint(1, 2)) for word in (name, rng.choice(TEXTS))]
    return Case([*command.split(), *first, *options])


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


def _flips(rng: random.Random) -> Case:
    source, at, how = rng.choice(["maze", "sudoku", "puzzles"]), rng.random(), rng.randint(0, 9)
    which, junk = rng.random(), rng.choice(TEXTS)

    def damage(folder: Path) -> None:
        shutil.copytree(folder / source, folder / "copy")
        files = sorted(path for path in (folder / "copy").rglob("*") if path.is_file())
        file = files[int(which * len(files))]
        data = bytearray(file.read_bytes())
        if how < 6 and data:
            data[int(at * len(data))] ^= 1 << how
        elif how == 6:
            data = data[: int(at * len(data))]
        elif how == 7 and file.suffix == ".json":
            found = json.loads(data)
            key = list(found)[int(at * len(found))]
            data = bytearray(json.dumps(found | {key: junk}).encode())
        elif how == 8:
            file.unlink()
            return
        file.write_bytes(data)

    command = (
        ["data", "verify", "copy"] if source == "puzzles" else ["solve", "copy", "1234" + "." * 12, "--depth", "2"]
    )
    return Case(command, damage)


def _names(rng: random.Random) -> Case:
    name, place = rng.choice(TEXTS), rng.randint(0, 5)
    commands = [
        ["solve", name, "1234" * 4], ["solve", "sudoku", name, "--depth", "2"], ["data", "verify", name], ["evaluate", name],
        ["train", name, "--out", "new"], ["data", "sudoku", "--out", name, "--size", "4", "--num", "2", "--num-test", "none"],
    ]  # fmt: skip
    return Case(commands[place])


def run(case: Case, folder: Path) -> str | None:
    """Run a case in ``folder``, which :func:`make_folder` wrote, and return what is wrong."""
    before = {path.name for path in folder.iterdir()}
    case.prepare(folder)
    out, error, code = io.StringIO(), io.StringIO(), None

    def stop(*_: object) -> None:
        raise TooLong

    previous, here = signal.signal(signal.SIGALRM, stop), Path.cwd()
    os.chdir(folder)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = main(case.arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException as raised:
        return f"raises {type(raised).__name__}: {raised}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        os.chdir(here)
        new = [path for path in folder.iterdir() if path.name not in before]
        parts = [path.name for path in folder.rglob("*") if TEMPORARY.fullmatch(path.name)]
        for path in new:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    text = out.getvalue() + error.getvalue()
    if code not in (0, 2) or "Traceback" in text:
        return f"exit code {code}: {error.getvalue()[-600:]}"
    if printable(text, keep="\n\t") != text and case.arguments[0] != "--help":
        return f"control characters: {text[-300:]!r}"
    if code and parts:
        return f"leaves {parts}"
    if code and (folder / "new").exists() and case.arguments[0] != "train":
        return "leaves a folder"
    return None
