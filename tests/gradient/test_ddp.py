"""Parallel wrappers of PyTorch average every gradient over the ranks, as for any module."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from tests.ranks import run_ranks
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from attractor import FixedPoint, Implicit, Neumann, OneStep, Phantom, Tolerance, Unrolled

GRADIENTS = [OneStep(), Neumann(2), Phantom(steps=2), Implicit(stop=Tolerance(rtol=1e-10)), Unrolled()]
WORLD_SIZE = 2


def shard(model: nn.Module) -> FullyShardedDataParallel:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


WRAPPERS = [DistributedDataParallel, shard]


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        nn.init.orthogonal_(self.linear.weight, 0.5)

    def forward(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(y) + x)


class Model(nn.Module):
    """A layer before and a layer after a fixed point, and the fixed point used twice."""

    def __init__(self, gradient) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = nn.Linear(4, 6), nn.Linear(6, 1)
        self.layer = FixedPoint(Cell(), gradient=gradient, stop=Tolerance(rtol=1e-10))
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        first = self.layer(torch.zeros_like(x), x).value
        return self.after(self.layer(first.detach(), x + first).value)


def batch() -> torch.Tensor:
    return torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def worker(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD_SIZE)
    x = batch()[rank::WORLD_SIZE]
    found = [[gradients(wrap(Model(gradient)), x) for gradient in GRADIENTS] for wrap in WRAPPERS]
    if rank == 0:
        torch.save(found, out)
    # No model may outlive the group: gloo's destructor can wait forever for the interpreter lock of its last owner.
    dist.barrier()
    dist.destroy_process_group()


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model(x).square().mean().backward()
    is_sharded = isinstance(model, FullyShardedDataParallel)
    with FullyShardedDataParallel.summon_full_params(model, with_grads=True) if is_sharded else nullcontext():
        return [p.grad.clone() for p in model.parameters()]


@pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")
def test_two_ranks_have_the_gradients_of_one_process(tmp_path) -> None:
    """Each rank has half the batch; the one process has all of it. With replicated and with sharded weights (FSDP1)."""
    run_ranks(worker, str(tmp_path / "store"), str(tmp_path / "found.pt"), size=WORLD_SIZE)
    for found in torch.load(tmp_path / "found.pt"):
        for gradient, ours in zip(GRADIENTS, found, strict=True):
            for expected, g in zip(gradients(Model(gradient), batch()), ours, strict=True):
                assert torch.allclose(expected, g, atol=1e-8), gradient
