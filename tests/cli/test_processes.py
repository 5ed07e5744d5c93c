"""Real processes under torchrun: what happens to the others when one is lost, asked to leave, or given something bad."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from attractor.train import find_checkpoint
from attractor.train.checkpoint import verify

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not sys.platform.startswith("linux"), reason="needs torch.distributed and /proc"
)

TINY = ["model.update.width=8", "model.segment=2", "model.tracked=1", "data.num_mazes=20", "data.size=7"]
RUN = ["train.seconds=null", "train.log_every=1", "train.checkpoint_every=2", "supervision.batch_size=8"]


class Started:
    """A command under torchrun, ended at the latest when the test ends."""

    def __init__(self, *arguments: str, num_ranks: int = 2) -> None:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        self.process = subprocess.Popen(
            [sys.executable, *torchrun, "-m", "attractor", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def ranks(self) -> list[int]:
        """The processes of the ranks, in order."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = {}
        for child in children:
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            found |= {int(e[5:]): int(child) for e in environment if e.startswith(b"RANK=")}
        return [found[rank] for rank in sorted(found)]

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


def train(out: Path, *more: str, num_steps: int = 100_000, num_ranks: int = 2) -> Started:
    settings = ["--set", *TINY, *RUN, f"train.num_steps={num_steps}"]
    return Started("train", "maze", "--out", str(out), "--track", "none", *more, *settings, num_ranks=num_ranks)


def steps(out: Path) -> int:
    file = out / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def until(reached, run: Started) -> None:
    end = time.monotonic() + 120
    while not reached():
        assert run.process.poll() is None, run.end()
        assert time.monotonic() < end
        time.sleep(0.02)

def test_x(tmp_path):
    run = train(tmp_path)
    until(lambda: steps(tmp_path) >= 7, run)
    t=time.time()
    os.kill(run.ranks[int(os.environ.get("WHICH","1"))], getattr(signal, os.environ.get("SIG","SIGKILL")))
    rc, out, err = run.end()
    print(rc, time.time()-t); print(out); print(err); print(sorted(os.listdir(tmp_path)), steps(tmp_path))
    assert 0
def test_y(tmp_path):
    run = train(tmp_path)
    until(lambda: steps(tmp_path) >= 7, run)
    t=time.time()
    run.process.send_signal(getattr(signal, os.environ.get("SIG","SIGTERM")))
    rc, out, err = run.end()
    print(rc, time.time()-t); print(out); print(err); print(sorted(os.listdir(tmp_path)), steps(tmp_path))
    assert 0
