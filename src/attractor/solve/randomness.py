"""Random numbers inside ``update``: the same at every call of one solve, new for the next solve.

Dropout that changes from call to call leaves no fixed point to find. The first call of a solve draws from PyTorch's
default generators, as any module does. If it drew something, later calls draw the same numbers again, from copies of
these generators as they were before the first call. The default generators are never set back, because other threads
draw from them too. Numbers from a generator that ``update`` passes explicitly are not repeated.
"""

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointFunction

from attractor.errors import ConfigError
from attractor.solve.array_ops import transforms

States = dict[torch.device, Tensor]
_active: ContextVar["_Replay | None"] = ContextVar("replay", default=None)
_is_recomputed_alike: ContextVar[bool] = ContextVar("is_recomputed_alike", default=False)
_swap = threading.Lock()


class RepeatedRandomness:
    """A function of one tensor, called with the random numbers of its first call. ``draws``: whether there are any."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self._called = False
        self._replay: _Replay | None = None

    @property
    def draws(self) -> bool:
        return self._replay is not None

    def __call__(self, y: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            if self._called:
                return self.function(y)
            from attractor.solve import one_graph  # imports the compiler, which takes seconds

            self._called = True
            return one_graph.without_random_numbers(self.function, y)
        if self._replay is not None:
            with self._replay:
                return self.function(y)
        if self._called or (y.is_cuda and torch.cuda.is_current_stream_capturing()):
            return self.function(y)
        self._called, before = True, _default_states(y.device)
        result = self.function(y)
        after = _default_states(y.device)
        with _outside_transforms():
            if any(bytes(state.numpy()) != bytes(after[device].numpy()) for device, state in before.items()):
                self._replay = _Replay(before)
        return result


class _Replay(TorchDispatchMode):
    """Operators draw from copies of the default generators, which start at ``states``."""

    def __init__(self, states: States) -> None:
        super().__init__()
        self._states, self._tokens = states, list[Token["_Replay | None"]]()
        self.generators = {device: torch.Generator(device) for device in states}

    def __enter__(self) -> "_Replay":
        if not self._tokens:  # not re-entered from below
            for device, state in self._states.items():
                self.generators[device].set_state(state)
        self._tokens.append(_active.set(self))
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        _active.reset(self._tokens.pop())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode, operators arrive before they are decomposed
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        tensor = next((value for value in given.values() if isinstance(value, Tensor)), None)
        device = torch.device(given.get("device") or (tensor.device if tensor is not None else "cpu"))
        generator = next((g for d, g in self.generators.items() if _is_same(device, d)), None)
        if generator is None or given.get("generator") is not None:
            return func(*args, **kwargs)
        _refuse_other_checkpoints()
        if func is torch.ops.aten.native_dropout.default:
            return _native_dropout(generator, *args, **kwargs)
        kwargs = {**kwargs, "generator": generator}
        if "generator" in names:
            return func(*args[: names.index("generator")], **kwargs)
        if any("generator" in overload for overload in func.overloadpacket.overloads()):
            return func.overloadpacket(*args, **kwargs)
        del kwargs["generator"]
        if not given.get("dropout_p", given.get("dropout", True)):
            return func(*args, **kwargs)  # fused attention that draws nothing
        return _with_default_generator(generator, lambda: func(*args, **kwargs))


def checkpoint_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The ``context_fn`` of :func:`torch.utils.checkpoint.checkpoint` for layers with dropout inside an update.

    Recomputation in the backward pass then draws the numbers of the forward pass.
    """
    replay = _active.get()
    if replay is None:
        return nullcontext(), nullcontext()
    again = _Replay({device: g.get_state() for device, g in replay.generators.items()})
    return _RecomputedAlike(nullcontext()), _RecomputedAlike(again)


class _RecomputedAlike:
    """``context`` for a call whose recomputation draws the same numbers. It can be entered again."""

    def __init__(self, context: AbstractContextManager[Any]) -> None:
        self._context, self._tokens = context, list[Token[bool]]()

    def __enter__(self) -> None:
        self._tokens.append(_is_recomputed_alike.set(True))
        self._context.__enter__()

    def __exit__(self, *args: Any) -> None:
        self._context.__exit__(*args)
        _is_recomputed_alike.reset(self._tokens.pop())


def _refuse_other_checkpoints() -> None:
    """Refuse random numbers in a checkpoint inside the update that has not :func:`checkpoint_contexts`.

    It restores the state of the default generators, so that its recomputation would draw other numbers in silence.
    """
    frame: FrameType | None = None if _is_recomputed_alike.get() else sys._getframe(1)
    while frame is not None and frame.f_code is not RepeatedRandomness.__call__.__code__:
        # Without gradients nothing is recomputed; a reentrant checkpoint turns them off itself.
        is_recorded = torch.is_grad_enabled() or frame.f_code is CheckpointFunction.forward.__code__
        if is_recorded and frame.f_globals.get("__name__") == CheckpointFunction.__module__:
            raise ConfigError(
                "fixed_point: update draws random numbers (dropout) inside torch.utils.checkpoint, whose recomputation "
                "would draw others; give checkpoint(..., context_fn=attractor.solve.checkpoint_contexts)."
            )
        frame = frame.f_back


def _is_same(device: torch.device, other: torch.device) -> bool:
    return device.type == other.type and (device.index is None or other.index in (None, device.index))


def _default_generator(device: torch.device) -> torch.Generator | None:
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.mps._get_default_mps_generator() if device.type == "mps" else None


def _default_states(device: torch.device) -> States:
    """Return the states of the generators that the next operator draws from: in a solve inside a solve, of the copies."""
    replay = _active.get()
    copies = replay.generators if replay is not None else {}
    generators = {d: copies.get(d, _default_generator(d)) for d in (torch.device("cpu"), device)}
    with _outside_transforms():
        return {d: generator.get_state() for d, generator in generators.items() if generator is not None}


def _outside_transforms() -> AbstractContextManager[Any]:
    """Return a context without the function transforms of ``torch.func``, in which tensors have no memory."""
    return temporarily_clear_interpreter_stack() if transforms() else nullcontext()


def _native_dropout(generator: torch.Generator, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """``aten::native_dropout`` with a generator, and the same numbers."""
    if train is False:
        return x, torch.ones_like(x, dtype=torch.bool)
    if x.is_cuda and 0 < p < 1:
        out, mask = torch._fused_dropout(x, 1 - p, generator)
        return out, mask.bool()
    kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p, generator=generator)
    return x * kept * (1 / (1 - p) if p < 1 else 0.0), kept


def _with_default_generator(generator: torch.Generator, run: Callable[[], Any]) -> Any:
    """Run a kernel that can only use the default generator, such as fused attention with dropout on a GPU."""
    default = _default_generator(generator.device)
    assert default is not None
    with _swap:  # for the launch of one kernel
        state = default.get_state()
        default.set_state(generator.get_state())
        result = run()
        generator.set_state(default.get_state())
        default.set_state(state)
    return result
