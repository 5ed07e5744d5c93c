"""A solve as a part of one graph of ``torch.compile(fullgraph=True)`` or ``torch.export``. Imported only there."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.comptime import comptime
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch.utils._python_dispatch import TorchDispatchMode

from attractor.errors import ConfigError


@torch.compiler.assume_constant_result
def is_requested() -> bool:
    """Whether ``fullgraph=True`` was asked for."""
    return InstructionTranslator.current_tx().output.root_tx.one_graph


@torch.compiler.assume_constant_result
def is_transformed() -> bool:
    """Whether a function transform is around the solve. Compiled code would lose the gradient there."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def refuse() -> None:
    comptime(_refuse)


def _refuse(context: Any) -> None:
    context.graph_break(
        "A solve compiles in one graph only with stop=Steps(n), and without gradients or with gradient=OneStep(), "
        "Phantom(...) or Unrolled(), outside torch.func. Compile without fullgraph=True; the solve then runs uncompiled."
    )


class _Watch(TorchDispatchMode):
    """Whether an operator draws random numbers."""

    draws = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:  # fused attention is, also without dropout
            names = [argument.name for argument in func._schema.arguments]
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            self.draws = self.draws or "dropout_p" not in names or given.get("dropout_p", 0) > 0
        return func(*args, **(kwargs or {}))


_RANDOM = (
    "fixed_point: update draws random numbers (dropout), which one graph cannot repeat at every evaluation. Compile "
    "without fullgraph=True, and export in evaluation mode."
)


def without_random_numbers(update: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """Return ``update(y)``, and refuse one that draws: a graph would draw other numbers at every evaluation."""
    if torch.compiler.is_dynamo_compiling():
        result = update(y)
        comptime(_check_graph)
        return result
    with _Watch() as watch:
        result = update(y)
    if watch.draws:
        raise ConfigError(_RANDOM)
    return result


def _check_graph(context: Any) -> None:
    """Run what was traced of ``update`` again, on tensors without data, and look at its operators."""
    for node in context.graph().nodes:
        is_call = node.op in ("call_function", "call_method") and "example_value" in node.meta
        if is_call and __file__ in (node.stack_trace or ""):
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["example_value"])
            function = getattr(type(args[0]), node.target) if node.op == "call_method" else node.target
            with _Watch() as watch, torch.random.fork_rng([]):
                function(*args, **kwargs)
            if watch.draws:
                context.graph_break(_RANDOM)
