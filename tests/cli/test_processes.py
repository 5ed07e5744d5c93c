"""Processes that train together under torchrun: one is lost, one is asked to leave, all are given something bad."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.ranks import forkserver

from attractor import recipes
from attractor.cli import main
from attractor.config import override
from attractor.experiment.puzzles import train_reasoner
from attractor.training import find_checkpoint, init_distributed
from attractor.training.checkpoint import verify

pytestmark = pytest.mark.skipif(
    not dist.is_available() or sys.platform != "linux", reason="needs torch.distributed and /proc"
)

SETTINGS = [
    "model.update.width=8", "model.evaluations_per_segment=2", "model.backprop_steps=1",
    "data.num_puzzles=20", "data.size=7", "data.style=perfect", "data.min_path=1",
    "train.warmup_fraction=0",
    "supervision.batch_size=4", "train.seconds=null", "train.log_every=1", "train.checkpoint_every=2",
]  # fmt: skip


def command(out: Path, *more: str, num_steps: int = 100_000, settings: tuple[str, ...] = ()) -> list[str]:
    """A run that goes on until it is told to stop, if it is not given fewer steps."""
    changed = [*SETTINGS, f"train.num_steps={num_steps}", *settings]
    return ["train", "maze", "--out", str(out), "--logger", "none", *more, "--set", *changed]


class Torchrun:
    """A command line in two processes."""

    def __init__(self, arguments: list[str]) -> None:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        self.process = subprocess.Popen(
            [*torchrun, "-m", "attractor", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def rank(self, rank: int) -> int:
        """The process of a rank."""
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return int(child)
        raise AssertionError(f"rank {rank} is not there")

    @property
    def goes_on(self) -> bool:
        return self.process.poll() is None

    def end(self) -> tuple[str, str]:
        """Wait, and return both outputs."""
        return self.process.communicate(timeout=120)


class Ranks:
    """A function in two processes, which share a store as under torchrun, without its seconds to begin."""

    def __init__(self, folder: Path, act: Callable[..., Any], *arguments: Any) -> None:
        folder.mkdir()
        processes = forkserver()
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.outputs = [[folder / f"{name}-{rank}.txt" for rank in (0, 1)] for name in ("out", "err")]
        self.processes = [
            processes.Process(target=on_rank, args=(rank, self.store.port, folder, act, *arguments)) for rank in (0, 1)
        ]
        for process in self.processes:
            process.start()

    @property
    def goes_on(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def end(self) -> tuple[str, str]:
        """Wait, and return both outputs of both."""
        for process in self.processes:
            process.join(120)
        out, err = ("".join(file.read_text() for file in files) for files in self.outputs)
        return out, err

    @property
    def exit_codes(self) -> list[int | None]:
        return [process.exitcode for process in self.processes]


def on_rank(rank: int, port: int, folder: Path, act: Callable[..., Any], *arguments: Any) -> None:
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", **address}
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / f"{name}-{rank}.txt", os.O_WRONLY | os.O_CREAT), descriptor)
    sys.exit(act(*arguments))


def train_until(step: int, out: Path) -> None:
    """Train as the command does, and pause after a step."""
    asked = iter(range(1, step + 1))
    config: Any = override(recipes.get("maze"), [*SETTINGS, "train.num_steps=100000"])
    with init_distributed() as distributed:
        train_reasoner(config, out, distributed=distributed, should_pause=lambda: next(asked) == step)


def steps(out: Path) -> list[int]:
    file = out / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.exists() else []


def wait(run: Torchrun | Ranks, out: Path, step: int) -> None:
    """Wait until a run has come to a step."""
    end = time.monotonic() + 120
    while max(steps(out), default=0) < step:
        assert run.goes_on, run.end()
        assert time.monotonic() < end
        time.sleep(0.02)


def said(text: str) -> list[str]:
    """What the package said itself, among what torch and torchrun did."""
    return [line for line in text.splitlines() if line.startswith("attractor: ")]


def tensors(out: Path) -> dict[str, Any]:
    """Checksums of all tensors in the newest checkpoint."""
    checkpoint = find_checkpoint(out)
    verify(checkpoint)
    sums = json.loads((checkpoint / "checksums.json").read_text())["files"]
    return {name: value for name, value in sums.items() if name.endswith((".safetensors", ".distcp"))}


def test_a_run_outlives_the_loss_of_a_rank_and_the_end_of_torchrun(tmp_path) -> None:
    """Who is left says within seconds what is; resumed by two and told to end, all is as if nothing had been; one can go on too."""
    out = tmp_path / "run"
    run = Torchrun(command(out))
    wait(run, out, 5)
    begun = time.monotonic()
    os.kill(run.rank(1), signal.SIGKILL)
    _, err = run.end()
    assert time.monotonic() - begun < 25  # torchrun itself would wait for 30 seconds, and gloo for 30 minutes
    [sentence] = said(err)
    # The step or the checkpoint that is being written, whichever notices first.
    assert "another process no longer answers" in sentence
    assert sentence.endswith(", is complete.")
    assert find_checkpoint(out).name in sentence
    verify(find_checkpoint(out))

    before = max(steps(out))
    run = Torchrun(command(out, "--resume"))
    wait(run, out, before + 3)
    run.process.send_signal(signal.SIGTERM)
    text, err = run.end()
    assert not said(err)
    assert text.count("paused; go on with: attractor train maze") == 1
    step = max(steps(out))
    assert find_checkpoint(out).name == f"step-{step:08d}"
    reference = Ranks(tmp_path / "reference", train_until, step, tmp_path / "whole")
    reference.end()
    assert reference.exit_codes == [0, 0]
    assert tensors(out) == tensors(tmp_path / "whole")
    assert sum(name.startswith("rank-") for name in tensors(out)) == 2

    assert main(command(out, "--resume", num_steps=step + 2)) == 0
    assert steps(out) == list(range(1, step + 3))


def test_one_rank_is_asked_to_leave_and_all_do(tmp_path) -> None:
    """With one checkpoint of both, exit code 0, and the way on said once."""
    out = tmp_path / "run"
    run = Ranks(tmp_path / "ranks", main, command(out))
    wait(run, out, 3)
    os.kill(run.processes[1].pid, signal.SIGTERM)
    text, err = run.end()
    assert run.exit_codes == [0, 0], err
    assert text.count("paused; go on with") == 1
    assert find_checkpoint(out).name == f"step-{max(steps(out)):08d}"
    assert sum(name.startswith("rank-") for name in tensors(out)) == 2


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """Runs of two ranks with different seeds, and prepared text."""
    folder = tmp_path_factory.mktemp("begun")
    for seed in ("0", "1"):
        arguments = command(folder / seed, num_steps=2, settings=(f"train.seed={seed}",))
        run = Ranks(folder / f"ranks-{seed}", main, arguments)
        _, err = run.end()
        assert run.exit_codes == [0, 0], err
    (folder / "text.txt").write_text("the sea was blue and a small boat went out past old walls of stone. " * 300)
    prepare = ["data", "prepare", str(folder / "text.txt"), "--out", str(folder / "tokens"), "--vocab-size", "260"]
    assert main([*prepare, "--val-fraction", "0"]) == 0
    return folder


def changed(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def mistakes(folder: Path) -> dict[str, tuple[Callable[[], object], list[str], str]]:
    """What is spoilt, what is called, and what is said."""
    run, step, out = folder / "0", folder / "0" / "step-00000002", folder / "new"
    text = ["train", "language/tiny", "--data", str(folder / "tokens"), "--out", str(out)]
    resume = command(run, "--resume", num_steps=4)
    other = folder / "1" / "step-00000002"
    nothing: Callable[[], object] = lambda: None  # noqa: E731
    return {
        "puzzles that cannot be divided": (
            nothing, command(out, settings=("supervision.batch_size=5",)), "make it a multiple of 2"
        ),
        "rows that cannot be divided": (nothing, [*text, "--set", "text.batch_size=7"], "make it a multiple of 2"),
        "another recipe": (
            nothing, command(run, "--resume", settings=("model.noise=0.3",)), "model.noise is 0.05 there and 0.3 here"
        ),
        "a damaged shard": (
            lambda: changed(step / "training/__0_0.distcp"), resume, "training/__0_0.distcp: does not match its checksum"
        ),
        "mixed checkpoints": (
            lambda: shutil.copyfile(other / "rank-00001.safetensors", step / "rank-00001.safetensors"),
            resume,
            "rank-00001.safetensors: does not match its checksum",
        ),
        "missing tokens": (
            lambda: (folder / "tokens/train-00000.bin").unlink(), text, "tokens/train-00000.bin: cannot be read"
        ),
        "damaged tokens": (
            lambda: changed(folder / "tokens/train-00000.bin"), text, "train-00000.bin: is not the file that was written"
        ),
        "no place to write": (nothing, command(folder / "text.txt" / "run"), "text.txt/run: cannot be written"),
        "a folder in use": (nothing, command(run), "this folder is not empty"),
        "nothing to resume": (nothing, command(out, "--resume"), "no checkpoint here"),
    }  # fmt: skip


def state_of(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", list(mistakes(Path())))
def test_a_mistake_of_all_is_one_sentence_of_one(name: str, begun, tmp_path) -> None:
    """All processes end with code 2, and no file is touched."""
    folder = tmp_path / "copy"
    shutil.copytree(begun, folder)
    spoil, arguments, says = mistakes(folder)[name]
    spoil()
    before = state_of(folder)
    run = Ranks(tmp_path / "ranks", main, arguments)
    _, err = run.end()
    assert run.exit_codes == [2, 2], err
    [sentence] = said(err)
    assert says in sentence
    assert "Traceback" not in err
    assert state_of(folder) == before


def fails_alone(out: Path) -> int:
    """Rank 1 finds fewer graphics cards than it needs, say."""
    if os.environ["RANK"] == "1":
        return main(["train", "maze", "--set", "train.sede=1"])
    return main(command(out))


def test_a_rank_that_fails_alone_says_why(tmp_path) -> None:
    """Though it is not the first one, and the others have yet to join."""
    run = Ranks(tmp_path / "ranks", fails_alone, tmp_path / "run")
    run.processes[1].join(60)
    assert run.processes[1].exitcode == 2
    assert "did you mean 'train.seed'" in run.outputs[1][1].read_text()
    run.processes[0].terminate()  # as torchrun does
    run.processes[0].join(60)


def differs(out: Path) -> int:
    """Rank 1 has another seed."""
    return main(command(out, settings=(f"train.seed={os.environ['RANK']}",)))


def test_ranks_with_different_settings_do_not_start(tmp_path) -> None:
    """One sentence names the setting, and no checkpoint is written."""
    run = Ranks(tmp_path / "ranks", differs, tmp_path / "run")
    _, err = run.end()
    assert run.exit_codes == [2, 2], err
    [sentence] = said(err)
    assert "rank 1 has recipe.train.seed=1 and rank 0 has 0" in sentence
    assert not list((tmp_path / "run").glob("step-*"))


def test_a_stopped_rank_is_noticed(tmp_path) -> None:
    """Within the time that the user set."""
    run = Ranks(tmp_path / "ranks", main, command(tmp_path / "run", settings=("train.timeout_seconds=4",)))
    try:
        wait(run, tmp_path / "run", 2)
        os.kill(int(run.processes[1].pid or 0), signal.SIGSTOP)
        run.processes[0].join(40)
        assert run.processes[0].exitcode == 2
        assert "another process no longer answers" in run.outputs[1][0].read_text()
    finally:
        for process in run.processes:
            process.kill()
