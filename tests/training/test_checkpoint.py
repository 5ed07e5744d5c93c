"""Checkpoints: complete or absent, of one process or many ranks, written while training continues."""

import contextlib
import copy
import errno
import json
import os
import shutil
import subprocess
import threading
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.ranks import run_ranks
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from attractor.errors import CheckpointError, LostRankError
from attractor.files.manifest import amended_file
from attractor.training.checkpoint import (
    Checkpoints,
    find_checkpoint,
    load,
    load_model,
    load_rank_tensors,
    load_scalars,
    read_run,
    save_weights,
    verify,
    verify_inference,
)
from attractor.training.checkpoint import writing as writing_module

WORLD = 2


def names(folder: Path) -> list[str]:
    """The names in a run's folder, without the link to the newest checkpoint."""
    return sorted(path.name for path in folder.iterdir() if path.name != "latest")


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))


class Run:
    """A tiny model with AdamW and an average, after some training steps. The seed determines weights and steps."""

    def __init__(self, seed: int = 0, shard: bool = False, steps: int = 2) -> None:
        self.model, self.averaged = network(seed), network(seed + 100)
        if shard:
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for module in (self.model, self.averaged):
                fully_shard(module, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        for step in range(steps):
            self.step(seed + step)

    def step(self, seed: int) -> None:
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
        self.model(x).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "averaged": get_model_state_dict(self.averaged), "optimizer": optimizer["state"]}

    def weights(self) -> dict:
        options = StateDictOptions(full_state_dict=True, cpu_offload=dist.is_initialized())
        return get_model_state_dict(self.averaged, options=options)

    def save(self, checkpoints: Checkpoints, step: int, rank: int = 0) -> None:
        checkpoints.save(
            step,
            state=self.state(),
            rank_tensors={"random": torch.full((3,), rank, dtype=torch.uint8)},
            scalars={"step": step},
            weights=self.weights(),
        )


def checkpoints(out: Path, **settings) -> Checkpoints:
    return Checkpoints(out, metadata={"kind": "test"}, save_model=save_weights, **settings)


def save(out: Path, *steps: int, seed: int = 0, **settings) -> Path:
    """Write checkpoints of one process and return the newest."""
    with checkpoints(out, **settings) as writer:
        for step in steps:
            Run(seed + step).save(writer, step)
    return find_checkpoint(out)


def flat(state: dict) -> dict[str, torch.Tensor]:
    """Return all tensors of a state by name, unsharded."""
    found = {}
    for name, value in state.items():
        if isinstance(value, dict):
            found |= {f"{name}.{k}": v for k, v in flat(value).items()}
        else:
            found[name] = value.full_tensor() if hasattr(value, "full_tensor") else value
    return found


def same(one: dict, two: dict) -> bool:
    one, two = flat(one), flat(two)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# One process


def test_everything_is_restored(tmp_path) -> None:
    """Training state, tensors of a rank, numbers, weights for inference and metadata."""
    run = Run()
    writer = checkpoints(tmp_path)
    run.save(writer, 5)
    writer.wait()
    checkpoint, other = find_checkpoint(tmp_path), Run(seed=1)
    state = other.state()
    assert not same(state, run.state())
    load(checkpoint, state)
    assert same(state, run.state())
    assert [tensors["random"].tolist() for tensors in load_rank_tensors(checkpoint)] == [[0, 0, 0]]
    assert load_scalars(checkpoint) == {"step": 5}
    assert read_run(checkpoint) == {"kind": "test"}
    model = network(3)
    load_model(checkpoint, model)
    assert same(model.state_dict(), run.averaged.state_dict())


def test_training_continues_while_a_checkpoint_is_written(tmp_path) -> None:
    """Changes of the weights after ``save`` are not written. The second save reuses the buffers of the first."""
    held = threading.Event()

    def save_model(weights, folder) -> None:
        assert held.wait(60)
        save_weights(weights, folder)

    writer = Checkpoints(tmp_path, metadata={}, save_model=save_model)
    run = Run()
    for step in (1, 2):
        before, averaged = copy.deepcopy(run.state()), copy.deepcopy(run.averaged.state_dict())
        held.clear()
        run.save(writer, step)
        run.step(9)
        with torch.no_grad():
            for p in run.averaged.parameters():
                p.add_(1)
        assert len(list(tmp_path.glob("step-*"))) == step - 1  # not written yet
        held.set()
        writer.wait()
        state, model = Run(seed=4).state(), network(3)
        load(find_checkpoint(tmp_path), state)
        load_model(find_checkpoint(tmp_path), model)
        assert same(state, before)
        assert same(model.state_dict(), averaged)


def test_the_newest_checkpoints_stay_and_incomplete_ones_are_removed(tmp_path) -> None:
    """The newest have the largest step number. Incomplete folders of an earlier process are removed at the start."""
    (tmp_path / ".part-step-00000009").mkdir(parents=True)
    (tmp_path / ".part-step-00000009" / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        find_checkpoint(tmp_path)
    writer = checkpoints(tmp_path, max_checkpoints=2)
    assert not list(tmp_path.iterdir())
    for step in (99_999_998, 99_999_999, 100_000_000):
        Run().save(writer, step)
    writer.wait()
    assert names(tmp_path) == ["step-100000000", "step-99999999"]
    assert find_checkpoint(tmp_path).name == "step-100000000"


def test_a_checkpoint_is_replaced_only_once_the_new_one_is_in_place(tmp_path, monkeypatch) -> None:
    """At any time a complete checkpoint is found. In the end only the new one exists."""
    save(tmp_path, 5)
    rename, found = Path.rename, []

    def checked_rename(self, target):
        rename(self, target)
        if self.parent == tmp_path:
            found.append(find_checkpoint(tmp_path))
            verify(found[-1])

    monkeypatch.setattr(Path, "rename", checked_rename)
    save(tmp_path, 5, seed=1)
    assert [p.name for p in found[:2]] == ["step-00000005-old", "step-00000005"]
    assert names(tmp_path) == ["step-00000005"]
    state = Run().state()
    load(tmp_path / "step-00000005", state)
    assert same(state, Run(seed=6).state())


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif how == "cut short":
        file.write_bytes(content[:-1])
    elif how == "missing":
        file.unlink()


def test_every_damaged_file_is_refused_by_name(tmp_path) -> None:
    """With a flipped bit, a missing byte or a missing file. One sentence names the file, and nothing is loaded."""
    intact = save(tmp_path / "intact", 5)
    state, before = Run(seed=1).state(), Run(seed=1).state()
    names = [p.relative_to(intact).as_posix() for p in intact.rglob("*") if p.is_file()]
    assert {"checksums.json", "run.json", "training.json", "training/.metadata", "training/__0_0.distcp"} < set(names)
    for name in names:
        for how in ("flipped", "cut short", "missing"):
            damaged = tmp_path / "damaged" / "step-00000005"
            shutil.copytree(intact, damaged)
            damage(damaged / name, how)
            with pytest.raises(CheckpointError) as refused:
                load(damaged, state)
            assert str(refused.value).startswith(f"{damaged / name}: "), (name, how)
            assert len(str(refused.value).splitlines()) == 1
            assert same(state, before)
            shutil.rmtree(damaged)


def test_two_checkpoints_mixed_are_refused(tmp_path) -> None:
    """A file of another run, or an additional file."""
    step, other = save(tmp_path / "one", 5), save(tmp_path / "two", 5, seed=1)
    state = Run().state()
    for name in ("training/__0_0.distcp", "training/.metadata", "rank-00000.safetensors", "model.safetensors"):
        kept = (step / name).read_bytes()
        if name != "rank-00000.safetensors":  # has the same content in both
            shutil.copyfile(other / name, step / name)
            with pytest.raises(CheckpointError, match=rf"{name}: (does not match|has [\d,]+ bytes)"):
                load(step, state)
        (step / name).write_bytes(kept)
    shutil.copyfile(step / "training/__0_0.distcp", step / "training/__1_0.distcp")
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp: does not belong to this checkpoint"):
        load(step, state)


def test_the_message_about_a_damaged_checkpoint_says_what_to_do(tmp_path) -> None:
    """It names the newest older checkpoint that is complete, which is not used automatically."""
    newest = save(tmp_path, 1, 2, 3, max_checkpoints=3)
    damage(newest / "training/__0_0.distcp", "flipped")
    damage(tmp_path / "step-00000002" / "model.safetensors", "cut short")
    assert find_checkpoint(tmp_path) == newest
    with pytest.raises(CheckpointError, match="step-00000001 is complete: remove step-00000003 to resume from there"):
        load(newest, Run().state())
    shutil.rmtree(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match="no older checkpoint is complete"):
        load(newest, Run().state())


def test_another_state_is_refused(tmp_path) -> None:
    """With an additional entry, a missing entry or other shapes. ``partial`` allows missing entries."""
    checkpoint, run = save(tmp_path, 5), Run(seed=1)
    for change, says in (
        ({"more": torch.zeros(1)}, "more"),
        ({"model": nn.Linear(4, 4).state_dict()}, "does not fit this run"),
        ({"model": {**run.state()["model"], "0.weight": torch.zeros(7, 6)}}, "0.weight"),
    ):
        with pytest.raises(CheckpointError, match=says):
            load(checkpoint, run.state() | change)
    part = {"model": run.state()["model"]}
    with pytest.raises(CheckpointError, match=r"it has averaged\.0\.bias, which this run has not"):
        load(checkpoint, part)
    load(checkpoint, part, partial=True)
    assert same(part, {"model": Run(seed=5).state()["model"]})


def test_inference_verifies_the_weights_and_reads_no_pickle(tmp_path, monkeypatch) -> None:
    """Files for training may be missing. Checksums of files that were changed on purpose can be updated."""
    checkpoint = save(tmp_path, 5)
    shutil.rmtree(checkpoint / "training")
    monkeypatch.setattr("pickle.load", lambda *_: pytest.fail("unpickled"))
    load_model(checkpoint, network(3))
    run = json.loads((checkpoint / "run.json").read_text())
    with amended_file(checkpoint, "run.json") as part:
        part.write_text(json.dumps(run | {"note": "edited"}))
    with pytest.raises(CheckpointError, match=r"training/\.metadata: is missing"):
        verify(checkpoint)
    damage(checkpoint / "model.safetensors", "flipped")
    for check in (lambda: verify_inference(checkpoint), lambda: load_model(checkpoint, network(3))):
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors: does not match its checksum; the checkpoint is"
        ):
            check()


def full_disk(*_, **__) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["save_model", "shards", "rank tensors", "checksums"])
def test_a_write_that_fails_leaves_the_last_checkpoint_intact(where: str, tmp_path, monkeypatch) -> None:
    """The next wait raises one sentence, the incomplete folder is removed, and the next save succeeds."""
    save(tmp_path, 1)
    writer = checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        if where == "save_model":
            patch.setattr(writer, "save_model", full_disk)
        elif where == "shards":
            patch.setattr(torch, "save", full_disk)
        elif where == "rank tensors":
            patch.setattr(writing_module, "save_file", full_disk)
        else:
            patch.setattr(writing_module.manifest, "write_checksum_file", full_disk)
        Run().save(writer, 2)
        with pytest.raises(CheckpointError) as failed:
            writer.wait()
    assert str(failed.value) == (
        f"{tmp_path / 'step-00000002'}: could not be written (the disk is full); "
        "the last one, step-00000001, is complete; free some disk space and resume."
    )
    assert names(tmp_path) == ["step-00000001"]
    verify(tmp_path / "step-00000001")
    Run().save(writer, 3)
    writer.wait()
    verify(find_checkpoint(tmp_path))
    assert find_checkpoint(tmp_path).name == "step-00000003"


@pytest.mark.parametrize("large", ["state", "rank_tensors", "weights"])
def test_a_disk_that_is_really_full_is_reported(large: str, tmp_path) -> None:
    """Whatever part of the checkpoint fills it. Needs the permission to mount a small file system."""
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", tmp_path], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        writer = checkpoints(tmp_path)
        parts = {name: {"x": torch.zeros(10)} for name in ("state", "rank_tensors", "weights")}
        writer.save(1, scalars={}, **parts)
        writer.save(2, scalars={}, **(parts | {large: {"x": torch.zeros(600_000)}}))
        with pytest.raises(CheckpointError, match=r"the disk is full\); the last one, step-00000001, is complete"):
            writer.wait()
        assert names(tmp_path) == ["step-00000001"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_failure_is_raised_by_the_next_save(tmp_path) -> None:
    """The next save then writes nothing. The message says if there is no earlier checkpoint."""

    def broken(weights, folder) -> None:
        raise RuntimeError("out of luck\nin line 2")

    writer = Checkpoints(tmp_path, metadata={}, save_model=broken)
    Run().save(writer, 1)
    with pytest.raises(CheckpointError, match=r"could not be written \(out of luck\); there is no earlier one\.$"):
        Run().save(writer, 2)
    assert not list(tmp_path.iterdir())


# Many ranks


def saves(rank: int, folder: Path, group: dist.ProcessGroup) -> None:
    run = Run(shard=True)
    writer = checkpoints(folder / "run", group=group)
    for step in (1, 2, 3):
        run.save(writer, step, rank)
        run.step(step)  # its collectives run at the same time as those of the write
    run.save(writer, 4, rank)
    expected = flat(run.state())
    writer.wait()
    if rank == 0:
        torch.save(expected, folder / "expected.pt")


def loads(rank: int, folder: Path, group: dist.ProcessGroup) -> None:
    checkpoint = find_checkpoint(folder / "run")
    state = Run(seed=1, shard=True).state()
    load(checkpoint, state, group=group)
    assert same(state, torch.load(folder / "expected.pt"))
    for name in ("training/__1_0.distcp", "training/__0_0.distcp"):  # one rank verifies it, and all ranks raise
        damaged = folder / f"damaged-{name[-10:-7]}"
        if rank == 0:
            shutil.copytree(checkpoint, damaged)
            damage(damaged / name, "flipped")
        dist.barrier()
        with pytest.raises(CheckpointError, match=name):
            load(damaged, state, group=group)


def fails(rank: int, folder: Path, group: dist.ProcessGroup) -> None:
    run, out = Run(shard=True), folder / "failing"
    writer = checkpoints(out, group=group)
    run.save(writer, 1, rank)
    for where, culprit in (("copy", 1), ("shards", 1), ("rank tensors", 1), ("checksums", 0)):
        writer.wait()
        with pytest.MonkeyPatch.context() as patch:
            owner, name = {
                "copy": (writer.stager, "stage"),
                "shards": (torch, "save"),
                "rank tensors": (writing_module, "save_file"),
                "checksums": (writing_module.manifest, "write_checksum_file"),
            }[where]
            if rank == culprit:
                patch.setattr(owner, name, full_disk)
            run.save(writer, 2, rank)
            with pytest.raises(CheckpointError, match=r"the disk is full\); the last one, step-00000001, is"):
                writer.wait()
        dist.barrier()
        assert names(out) == ["step-00000001"], where
        dist.barrier()
    run.save(writer, 3, rank)
    writer.wait()
    verify(out / "step-00000003", group)


def dies(rank: int, folder: Path, group: dist.ProcessGroup) -> None:
    run, out = Run(shard=True), folder / "dying"
    writer = checkpoints(out, group=group)
    run.save(writer, 1, rank)
    writer.wait()
    if rank == 0:
        writer.save_model = lambda *_: os._exit(0)
    run.save(writer, 2, rank)
    with pytest.raises(LostRankError, match=r"another process no longer answers.*step-00000001, is complete"):
        writer.wait()
    (folder / "dies.done").touch()
    os._exit(0)


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    settings = {"rank": rank, "world_size": WORLD, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", **settings)
    for part in (saves, loads, fails, dies):
        try:
            part(rank, folder, dist.new_group(backend="gloo"))
        except BaseException:
            (folder / f"{part.__name__}-{rank}.txt").write_text(traceback.format_exc())
            raise
        if rank == 0:
            (folder / f"{part.__name__}.done").touch()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Path:
    """Return the folder in which two ranks have saved, loaded and failed, up to the first part that raised."""
    if not dist.is_available():
        pytest.skip("this build of PyTorch has no torch.distributed")
    folder = tmp_path_factory.mktemp("ranks")
    with contextlib.suppress(
        torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException
    ):
        run_ranks(worker, folder, size=WORLD)
    return folder


def require(folder: Path, part: str) -> None:
    """Fail with the tracebacks of the ranks, unless this part succeeded."""
    assert (folder / f"{part}.done").exists(), "".join(p.read_text() for p in folder.glob("*.txt"))


def test_shards_of_two_ranks_are_loaded_by_one(ranks) -> None:
    """Values are equal, the tensors of the ranks come in rank order, and only the newest checkpoints stay."""
    require(ranks, "saves")
    out = ranks / "run"
    assert names(out) == ["step-00000003", "step-00000004"]
    checkpoint, expected = find_checkpoint(out), torch.load(ranks / "expected.pt")
    assert {"__0_0.distcp", "__1_0.distcp"} < {p.name for p in (checkpoint / "training").iterdir()}
    state = Run(seed=1).state()
    load(checkpoint, state)
    assert same(state, expected)
    assert [tensors["random"].tolist() for tensors in load_rank_tensors(checkpoint)] == [[0, 0, 0], [1, 1, 1]]
    model = network(3)
    load_model(checkpoint, model)
    assert same({"averaged": model.state_dict()}, {k: v for k, v in expected.items() if k.startswith("averaged")})


def test_shards_of_two_ranks_are_loaded_by_two(ranks) -> None:
    """Values are equal. Both ranks refuse a damaged file, although only one of them verifies it."""
    require(ranks, "loads")


def test_a_failure_on_one_rank_is_raised_on_all(ranks) -> None:
    """With the same sentence and without waiting forever, in all stages of a write. The next write succeeds."""
    require(ranks, "fails")


def test_a_lost_rank_ends_the_others_and_the_next_run_removes_the_incomplete_checkpoint(ranks) -> None:
    """The last complete checkpoint is found and intact."""
    require(ranks, "dies")
    out = ranks / "dying"
    assert names(out) == [".part-step-00000002", "step-00000001"]
    assert find_checkpoint(out).name == "step-00000001"
    verify(find_checkpoint(out))
    checkpoints(out)
    assert names(out) == ["step-00000001"]


def test_latest_names_the_newest_checkpoint(tmp_path) -> None:
    """As a link that other libraries follow, as a name where there is no link; something else of that name stays."""
    assert save(tmp_path, 1) == find_checkpoint(tmp_path / "latest") == (tmp_path / "latest").resolve()
    newest = save(tmp_path, 2)
    assert newest == find_checkpoint(tmp_path / "latest") == (tmp_path / "latest").resolve()
    (tmp_path / "latest").unlink()
    assert find_checkpoint(tmp_path / "latest") == newest
    (tmp_path / "latest").mkdir()
    save(tmp_path, 3)
    assert (tmp_path / "latest").is_dir()
    assert not (tmp_path / "latest").is_symlink()
