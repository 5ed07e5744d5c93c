"""One model on many processes, with PyTorch's own tools: replicated (DDP) or sharded (FSDP2).

Gradients are the mean over the processes, whose parts of a batch have equal size. So a step equals the step of one
process with the complete batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attractor.training.distributed import DistributedContext

# Modules whose weights are gathered in one operation, and whether the weights stay gathered until the backward pass.
# Those of a solve do: it then gathers once for any number of evaluations, and ranks may make different numbers of
# evaluations.
Unit = tuple[Sequence[nn.Module], bool]


def apply_fsdp(model: nn.Module, units: Sequence[Unit], distributed: DistributedContext, reduce: torch.dtype) -> None:
    """Shard the weights of ``model`` over the ranks, in place (FSDP2). Gradients are summed in dtype ``reduce``."""
    mesh = init_device_mesh(distributed.device.type, (distributed.size,))
    policy = MixedPrecisionPolicy(reduce_dtype=reduce)
    for modules, stays_gathered in units:
        fully_shard(list(modules), mesh=mesh, reshard_after_forward=not stays_gathered, mp_policy=policy)
    model.register_forward_hook(lambda _module, _inputs, output: _copy_views(output))  # before FSDP's own hooks
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _copy_views(output: Any) -> Any:
    """Copy the differentiable views in a model's output: FSDP's backward hooks do not support all uses of views."""
    if isinstance(output, Tensor):
        return output.clone() if output.requires_grad and output._base is not None else output
    if is_dataclass(output) and not isinstance(output, dict | type):
        return replace(output, **{f.name: _copy_views(getattr(output, f.name)) for f in fields(output)})
    return output


def apply_ddp(model: nn.Module, distributed: DistributedContext, reduce: torch.dtype) -> DistributedDataParallel:
    """Return ``model`` with gradients averaged over the ranks in dtype ``reduce`` (DDP)."""
    replicated = DistributedDataParallel(
        model,
        device_ids=[distributed.device] if distributed.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # The search is cheap and keeps the buckets fixed. Without it DDP rebuilds them after the first step of a run,
        # so the first step after a resume would sum in another order and the resumed run would not be bitwise the same.
        find_unused_parameters=True,
    )
    if reduce != torch.float32:
        replicated.register_comm_hook(reduce, _average_in_dtype)
    return replicated


def _average_in_dtype(dtype: torch.dtype, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket of gradients over the ranks in another dtype. PyTorch's own hook for this needs NCCL."""
    narrow = (bucket.buffer() / dist.get_world_size()).to(dtype)
    work = dist.all_reduce(narrow, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: bucket.buffer().copy_(done.value()[0]))


@contextmanager
def gradient_sync(model: nn.Module, *, now: bool) -> Iterator[None]:
    """Sum gradients over the ranks in the backward passes of this block, or leave them for a later one."""
    if isinstance(model, DistributedDataParallel) and not now:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    yield


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients so that their total norm is at most ``max_norm``, and return the norm before that."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def reshard(model: nn.Module) -> None:
    """Free the gathered weights that a forward pass without a backward pass leaves behind under FSDP."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """Return a model whose weights are the exponential moving average of those of ``model``.

    After ``t`` steps the decay is ``min(decay, (1 + t) / (10 + t))``: in a short run the average is over about the last
    tenth of the steps, and does not keep the initial weights.
    """

    def update(average: Any, current: Any, _: Any) -> None:
        step = int(averaged.n_averaged)  # on the CPU, unlike the argument, which would synchronise the host
        get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))(average, current, step)

    averaged = AveragedModel(model, multi_avg_fn=update)
    return averaged
