"""Floating-point operations of a reasoner, counted by PyTorch on the ``meta`` device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from attractor.models.reasoning.reasoner import ReasonerConfig


@dataclass(frozen=True, kw_only=True)
class ForwardCost:
    """Floating-point operations for one puzzle: matrix products and convolutions, two per multiply-add.

    Attributes
    ----------
    evaluation, evaluation_backward
        One evaluation of the update, and its backward pass.
    decode
        Reading the answer and the halting logit from the state. Its backward pass costs twice as much.
    """

    evaluation: float
    evaluation_backward: float
    decode: float


@lru_cache(maxsize=64)
def forward_cost(config: "ReasonerConfig", num_cells: int) -> ForwardCost:
    """Count the operations of the model of ``config`` on a grid of ``num_cells``."""
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        model = config.build()
        questions = torch.zeros(1, 1, num_cells, dtype=torch.long)
        update, state = model.make_update(questions), model.init_state(questions)
        evaluation, next_state = _count(lambda: update(state))
        backward, _ = _count(lambda: next_state.sum().backward())
        decode, _ = _count(lambda: model.decode(state)[0])
    return ForwardCost(evaluation=evaluation, evaluation_backward=backward, decode=decode)


def _count(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    # FlopCounterMode has no formula for the fused attention of a CPU; the plain one makes the same products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        result = run()
    return float(counter.get_total_flops()), result
