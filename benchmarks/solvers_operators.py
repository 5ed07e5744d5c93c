"""How many operators one evaluation takes on an accelerator, counted on a CPU with tensors instead of NumPy arrays."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import metrics
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from attractor import Solver, Tolerance, fixed_point, fused_bookkeeping
from attractor.solve import anderson, array_ops, loop, update

READS = "aten::_local_scalar_dense", "aten::nonzero"


@contextmanager
def tensor_path() -> Iterator[None]:
    """Within this context, bookkeeping uses tensors as on an accelerator, which the host does not read unasked."""
    with ExitStack() as stack:
        for module in (array_ops, anderson, loop, update):
            for name, pretended in (("to_array", lambda x: x.detach()), ("is_readable", lambda x: False)):
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, pretended))
        norm = patch.object(update, "_l2_norm", lambda x: torch.linalg.vector_norm(x, dim=1, dtype=torch.float64))
        stack.enter_context(norm)
        yield


class Operators(TorchDispatchMode):
    """The names of all operators that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.names += [] if is_view else [func.name()]
        return func(*args, **(kwargs or {}))


def operators(solver: Solver, *, any_frozen: bool, check_every: int = 1, fused: bool = False) -> list[str]:
    """Return the operators of four evaluations of a causal solve (4, 64, 128) to a tolerance, without the update's own.

    With ``any_frozen`` some equations have converged before. With ``fused``, the decisions are one operator, ``decide``.
    """
    counted = []
    for evaluations in (7, 11):
        with Operators() as found, fused_as_one(found) if fused else nullcontext():
            _solve(solver, any_frozen, Tolerance(1e-6, max_evaluations=evaluations, check_every=check_every))
        counted.append(found.names)
    rest = counted[1]
    for name in counted[0]:
        rest.remove(name)
    return rest


def fused_launches(solver: Solver) -> float:
    """Return the kernels of one evaluation inside ``fused_bookkeeping()`` after some equations have converged."""
    torch._dynamo.reset()
    counters.clear()
    metrics.reset()
    with fused_bookkeeping():
        _solve(solver, True, Tolerance(1e-6, max_evaluations=11, patience=None))
    kernels = metrics.generated_kernel_count / counters["stats"]["unique_graphs"]
    names = operators(solver, any_frozen=True, fused=True)
    return (len(names) - names.count("decide")) / 4 + kernels


@contextmanager
def fused_as_one(found: Operators) -> Iterator[None]:
    """Within this context, the decisions after an evaluation count as one operator."""

    def decide(*args: Any) -> Any:
        found.names.append("decide")
        with _disable_current_modes():
            return loop._decide(*args)

    with patch.object(loop, "fused", lambda function, like: decide):
        yield


def _solve(solver: Solver, any_frozen: bool, stop: Tolerance) -> None:
    generator = torch.Generator().manual_seed(0)
    c, weight = (torch.randn(*shape, generator=generator) for shape in ((4, 64, 128), (128, 128)))
    gain = torch.ones(4, 64, 1)
    gain[0, 0] = 0 if any_frozen else 1

    def step(y: Tensor) -> Tensor:
        with _disable_current_modes():
            return c + gain * torch.tanh(y @ weight / 12)

    with torch.no_grad(), tensor_path():
        fixed_point(step, torch.zeros_like(c), solver=solver, stop=stop, causal=True)
