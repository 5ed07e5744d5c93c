"""One model on many processes, by PyTorch's own means: replicated (DDP) or with its weights divided (FSDP2).

Either way gradients are the mean over the processes, whose parts of a batch are equal, so that a step is the one that a single
process with the whole batch would make.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attractor.training.distributed import DistributedContext

STRATEGIES = ("ddp", "fsdp")
# Modules whose weights are gathered as one, and whether they stay gathered until gradients have passed: those of a solve do, so
# that it gathers once however often it evaluates, and ranks may evaluate differently often.
Unit = tuple[Sequence[nn.Module], bool]


def apply_fsdp(model: nn.Module, units: Sequence[Unit], distributed: DistributedContext, reduce: torch.dtype) -> None:
    """Divide the weights of ``model`` among the ranks, in place (FSDP2). Gradients are added up in ``reduce``."""
    # Some of our models return views; nothing of ours changes one in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    mesh = init_device_mesh(distributed.device.type, (distributed.size,))
    policy = MixedPrecisionPolicy(reduce_dtype=reduce)
    for modules, stays in units:
        fully_shard(list(modules), mesh=mesh, reshard_after_forward=not stays, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def apply_ddp(model: nn.Module, distributed: DistributedContext, reduce: torch.dtype) -> DistributedDataParallel:
    """Return ``model`` with gradients averaged over the ranks in ``reduce`` (DDP)."""
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified", UserWarning)  # on purpose, see below
    replicated = DistributedDataParallel(
        model,
        device_ids=[distributed.device] if distributed.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # Looking for unused parameters costs little and keeps buckets as they are. Otherwise they are laid out anew after a run's
        # first step, sums are made in another order than in the first step after a resume, and that would not be bitwise.
        find_unused_parameters=True,
    )
    if reduce != torch.float32:
        replicated.register_comm_hook(reduce, _mean_in)
    return replicated


def _mean_in(dtype: torch.dtype, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket of gradients over the ranks in another precision. PyTorch's own hook for this asks for NCCL."""
    narrow = (bucket.buffer() / dist.get_world_size()).to(dtype)
    work = dist.all_reduce(narrow, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: bucket.buffer().copy_(done.value()[0]))


@contextmanager
def gradient_sync(model: nn.Module, *, now: bool) -> Iterator[None]:
    """Add up gradients over the ranks in the backward passes of this block, or leave them for a later one."""
    if isinstance(model, DistributedDataParallel) and not now:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    yield


def clip(model: nn.Module, most: float) -> Tensor:
    """Bound the norm of all gradients together, and return what it was."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), most)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return a model whose weights are a moving average of those of ``model``, in which a share ``decay`` stays at every step."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
