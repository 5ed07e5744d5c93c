"""Deep supervision with carried states: every optimiser step runs and supervises one segment of a batch.

Each puzzle of the batch counts its own segments. After ``max_segments``, or with some probability once it is solved,
a new puzzle with a new initial state replaces it; the other states are carried over, detached. The network thus trains
on states near the answer and far from it, and the right answer becomes a fixed point (TRM, arXiv:2510.04871; EqR,
arXiv:2605.21488).
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attractor.config import config_class, require_whole, suggestion
from attractor.errors import ConfigError
from attractor.gradient import jacobian_penalty
from attractor.nn import unwrap_model
from attractor.objectives.batch import split_batch

IGNORED = -100  # the label of a cell that does not count, as in torch
HELD_OUT_TOLERANCE = 1e-4  # the relative residual at which a held-out puzzle has converged
Grids = NDArray[np.uint8]  # (N, height, W)
Augment = Callable[[Grids, Grids, np.random.Generator], tuple[Grids, Grids]]
Targets = Callable[[Grids], NDArray[np.int64]]
Crop = Callable[[Grids, Grids, int, np.random.Generator], tuple[Grids, Grids]]


@config_class
class DeepSupervisionConfig:
    """Settings of deep supervision.

    Attributes
    ----------
    batch_size
        Puzzles of a batch, over all processes.
    max_segments
        Number of segments after which a puzzle is replaced.
    replace_solved_prob
        Probability, after each segment, that a solved puzzle is replaced at once.
    replace_halted
        Whether a puzzle is replaced when the halting head predicts that it is solved, as in the training of TRM and HRM.
    halt_exploration_prob
        Probability that a puzzle must reach a random number of segments before the halting head can replace it.
    cross_entropy
        ``"softmax"``, or ``"stablemax"``: see :func:`stablemax_cross_entropy`.
    halting_weight
        Weight of the halting head's loss, for models that have this head.
    auxiliary_weight
        Weight of an auxiliary loss, for an attractor on mazes: its second head learns the steps from every cell to G, modulo
        3, from the first segment on. Such targets are called hints in the CLRS benchmark (arXiv:2205.15659).
    jacobian_weight
        Weight of :func:`attractor.jacobian_penalty` at the state where a segment ends. The penalty makes the update
        contract.
    augment
        Whether each puzzle is replaced by a random symmetric copy of it.
    max_revealed
        Each question gets the answers of a random number of its blank cells (0), at most so many, for Sudokus.
    windows
        For mazes: training begins on square windows of these sizes, one after the other, each with a part of its maze's
        path, and ends on whole mazes. All phases are equally long. A window has as many segments, in proportion to
        ``max_segments``, as cells in a row. Sizes that are not smaller than the mazes are left out, and all of them if
        the mazes are not square.
    """

    batch_size: int = 64
    max_segments: int = 8
    replace_solved_prob: float = 0.0
    replace_halted: bool = False
    halt_exploration_prob: float = 0.1
    cross_entropy: str = "softmax"
    halting_weight: float = 0.5
    auxiliary_weight: float = 0.0
    jacobian_weight: float = 0.0
    augment: bool = True
    max_revealed: int = 0
    windows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_whole(self, 1, "batch_size", "max_segments")
        require_whole(self, 0, "max_revealed")
        if any(type(window) is not int or window < 5 for window in self.windows):
            raise ConfigError(f"deep supervision: windows={list(self.windows)}: give whole numbers from 5 up.")
        for name in ("replace_solved_prob", "halt_exploration_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"deep supervision: {name}={getattr(self, name)} must lie in [0, 1].")
        for name in ("halting_weight", "auxiliary_weight", "jacobian_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"deep supervision: {name}={getattr(self, name)} cannot be negative.")
        if self.cross_entropy not in LOSSES:
            raise ConfigError(f"cross_entropy={self.cross_entropy!r}: {suggestion(self.cross_entropy, LOSSES)}")


def stablemax_cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the mean cross-entropy of ``logits`` (N, classes) with a softmax in which ``1 + x`` (for ``x ≥ 0``) and
    ``1 / (1 − x)`` (for ``x < 0``) replace ``exp(x)``.

    Its gradient does not vanish when logits grow (Prieto et al. 2025, arXiv:2501.04697).
    """
    x = logits.float()
    return F.nll_loss(F.log_softmax(x.sign() * x.abs().log1p(), dim=-1), targets, reduction=reduction)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "softmax": F.cross_entropy,
    "stablemax": stablemax_cross_entropy,
}


class DeepSupervision:
    """An :class:`attractor.training.Objective` for models that update a state.

    The model is called as ``model(questions, state)`` and returns ``logits`` (B, height, W, classes), ``solution``, ``halt``
    and ``auxiliary``. MFU needs ``flops_per_puzzle(num_cells, training=True)``, the Jacobian penalty
    ``penalized_map(questions, state)``.

    Parameters
    ----------
    questions, answers
        Integer arrays (N, height, W), which may be memory-mapped.
    init_state
        ``init_state(questions) -> state``.
    augment
        ``augment(questions, answers, rng)`` applies a random symmetry to each pair.
    crop
        ``crop(questions, answers, size, rng)`` returns a random window of each pair, for ``config.windows``.
    auxiliary_targets
        ``auxiliary_targets(questions)`` returns a class of every cell, or -1 for none, for ``config.auxiliary_weight``.
    offsets
        (N,), added to every cell of a question after its symmetry, for models of puzzles with names.
    ignored
        The value of answer cells that do not count.
    held_out
        Questions and answers (N, height, W) for :meth:`evaluate`, as the model reads them; answers below 0 do not count.
    peak_flops
        Peak of the device in FLOP/s, for model FLOPs utilization (MFU) in the log; ``None`` leaves it out.
    rank, world_size
        This process, and the number of processes that share every batch. Each draws its own questions.
    """

    def __init__(
        self,
        questions: Grids,
        answers: Grids,
        config: DeepSupervisionConfig,
        *,
        init_state: Callable[[Tensor], Tensor],
        augment: Augment,
        crop: Crop | None = None,
        auxiliary_targets: Targets | None = None,
        offsets: NDArray[np.int64] | None = None,
        ignored: int | None = None,
        device: torch.device | None = None,
        held_out: tuple[Tensor, Tensor] | None = None,
        peak_flops: float | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._rank, self._world_size = rank, world_size
        self._first, self._num = split_batch(config.batch_size, rank, world_size)
        self._data, self._offsets, self._ignored = (questions, answers), offsets, ignored
        if config.windows and crop is None:
            raise ConfigError("supervision.windows needs a function that crops mazes.")
        height, width = questions.shape[1:]
        self._windows = tuple(size for size in config.windows if size < height == width)
        self._config, self._init_state, self._device = config, init_state, device
        self._augment, self._crop = augment, crop
        self._auxiliary_targets = auxiliary_targets if config.auxiliary_weight else None
        self._size, self._max_segments = questions.shape[1], config.max_segments  # of the present window, or puzzle
        self._held_out, self._peak_flops = held_out, peak_flops
        self._num_segments, self._since = 0, time.perf_counter()  # of all puzzles, since the last report
        self._carry: dict[str, Tensor] | None = None

    def step(self, model: nn.Module, progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Run one segment of the batch and return its loss and metrics. ``progress`` in [0, 1] decides the window."""
        config = self._config
        height = self._data[0].shape[1]
        phases = (*self._windows, height)
        self._size = phases[min(int(progress * len(phases)), len(phases) - 1)]
        self._max_segments = math.ceil(config.max_segments * self._size / height)
        carry = self._carry
        if carry is None or carry["answers"].shape[1] != self._size:
            carry = self._first_batch()
        carry = self._replace_finished(carry)
        output: Any = model(carry["questions"], carry["state"])
        self._num_segments += config.batch_size
        solved = _are_right(output.logits, carry["answers"])
        segments = carry["segments"] + 1
        state = output.solution.value.detach()
        finished = self._is_finished(output, solved, segments)
        finished |= ~state.isfinite().flatten(1).all(dim=1)
        loss, metrics = self._loss(model, carry, output, solved)
        self._carry = {**carry, "state": state, "segments": segments, "finished": finished}
        return loss, metrics

    def _loss(
        self, model: nn.Module, carry: dict[str, Tensor], output: Any, solved: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self._config
        answers, cross_entropy = carry["answers"], LOSSES[config.cross_entropy]
        if self._ignored is None:
            loss = cross_entropy(output.logits.flatten(0, -2), answers.flatten())
        else:  # every puzzle has the same weight, however many cells count
            loss = cross_entropy(output.logits.flatten(0, -2), answers.flatten(), reduction="none").view(answers.shape)
            loss = (loss.flatten(1).sum(1) / (answers >= 0).flatten(1).sum(1)).mean()
        # The median: after one evaluation from a state of zero, a relative residual says nothing.
        metrics = {"batch_exact": solved.float().mean(), "residual": output.solution.residual.median()}
        if output.halt is not None:
            halting = F.binary_cross_entropy_with_logits(output.halt.float(), solved.float())
            loss = loss + config.halting_weight * halting
            metrics["halting"] = halting.detach()
        if "targets" in carry:
            auxiliary = F.cross_entropy(output.auxiliary.flatten(0, -2), carry["targets"].flatten(), ignore_index=-1)
            loss = loss + config.auxiliary_weight * auxiliary
            metrics["auxiliary"] = auxiliary.detach()
        if config.jacobian_weight:
            penalized = unwrap_model(model).penalized_map(carry["questions"], output.solution.value)
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
                penalty = jacobian_penalty(*penalized)
            loss = loss + config.jacobian_weight * penalty
            metrics["jacobian"] = penalty.detach()
        return loss, metrics

    def _is_finished(self, output: Any, solved: Tensor, segments: Tensor) -> Tensor:
        """Return which puzzles are replaced before the next segment, (B,) bool."""
        config = self._config
        finished = segments >= self._max_segments
        if config.replace_solved_prob:
            finished |= solved & (_uniform(solved) < config.replace_solved_prob)
        if output.halt is not None and config.replace_halted:
            min_segments = (2 + (self._max_segments - 1) * _uniform(solved)).long()
            explores = (_uniform(solved) < config.halt_exploration_prob) & (segments < min_segments)
            finished |= (output.halt > 0) & ~explores
        return finished

    def _draw(self, num: int) -> dict[str, Tensor]:
        """Draw ``num`` puzzles with initial states."""
        index = torch.randint(len(self._data[0]), (num,)).numpy()
        # Seeded from torch's generator, so that a checkpoint of that one state is enough to resume exactly.
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        pair = self._data[0][index], self._data[1][index]
        if self._size < pair[0].shape[1]:
            assert self._crop is not None  # or the constructor refuses
            pair = self._crop(*pair, self._size, rng)
        if self._config.augment:
            pair = self._augment(*pair, rng)
        targets = {} if self._auxiliary_targets is None else {"targets": self._auxiliary_targets(pair[0])}
        questions, answers = (torch.from_numpy(np.ascontiguousarray(grids)).long().to(self._device) for grids in pair)
        if self._offsets is not None:
            questions += torch.from_numpy(self._offsets[index]).to(self._device)[:, None, None]
        if self._ignored is not None:
            answers = answers.masked_fill(answers == self._ignored, IGNORED)
        if self._config.max_revealed:
            questions = _reveal(questions, answers, self._config.max_revealed)
        segments = torch.zeros(num, dtype=torch.long, device=self._device)
        finished = torch.zeros(num, dtype=torch.bool, device=self._device)
        state = self._init_state(questions)
        return {
            "questions": questions,
            "answers": answers,
            **{name: torch.from_numpy(values).to(self._device) for name, values in targets.items()},
            "state": state,
            "segments": segments,
            "finished": finished,
        }

    def _first_batch(self) -> dict[str, Tensor]:
        if self._carry is None:
            self._seed_rank()
        carry = self._draw(self._num)
        # Staggered counts, so that puzzles are not all replaced in the same step.
        staggered = torch.randint(self._max_segments, (self._num,))
        return {**carry, "segments": staggered.to(self._device)}

    def _seed_rank(self) -> None:
        """Give this rank its own random numbers; until here all ranks draw the same ones."""
        if self._world_size > 1:
            torch.manual_seed(int(torch.randint(2**62, ())) + self._rank)

    def _replace_finished(self, carry: dict[str, Tensor]) -> dict[str, Tensor]:
        index = carry["finished"].nonzero()[:, 0]
        if not len(index):
            return carry
        new = self._draw(len(index))
        return {name: value.index_put((index,), new[name]) for name, value in carry.items()}

    def diagnostics(self, model: nn.Module) -> dict[str, float]:
        """Return segments per second (of all puzzles) since the last call, the size of the present window, and MFU."""
        rate = self._num_segments / (time.perf_counter() - self._since)
        figures = {"segments/s": rate, **({"window": float(self._size)} if self._windows else {})}
        if self._peak_flops is not None:
            whole = self._data[0][0]
            num_cells = self._size**2 if self._size < len(whole) else whole.size
            flops = unwrap_model(model).flops_per_puzzle(num_cells, training=True)
            figures["mfu"] = rate * flops / (self._world_size * self._peak_flops)
        self._num_segments, self._since = 0, time.perf_counter()
        return figures

    def evaluate(self, model: Any) -> dict[str, float]:
        """Return what ``model`` reaches on held-out puzzles in ``max_segments`` segments; nothing if there are none.

        ``held_out`` is the share that is right in every cell, ``held_out_converged`` the share whose residual falls below
        1e-4, and ``held_out_evaluations`` the mean number of evaluations until then. Initial states are always the same.
        """
        if self._held_out is None:
            return {}
        start, (questions, answers), was_training = time.perf_counter(), self._held_out, model.training
        model.eval()
        devices = [questions.device] if questions.is_cuda else []
        with torch.random.fork_rng(devices), torch.no_grad():  # evaluation does not change the run
            torch.manual_seed(0)
            state, is_open = self._init_state(questions), torch.ones(len(questions), device=questions.device)
            num_segments = torch.zeros_like(is_open)
            for _ in range(self._config.max_segments):
                output: Any = model(questions, state)
                state = output.solution.value
                num_segments += is_open
                is_open *= ~(output.solution.residual < HELD_OUT_TOLERANCE)
        model.train(was_training)
        self._since += time.perf_counter() - start  # this is no time of segments
        return {
            "held_out": float(_are_right(output.logits, answers).float().mean()),
            "held_out_converged": 1 - float(is_open.mean()),
            "held_out_evaluations": float(num_segments.mean()) * model.evaluations_per_segment,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the carried batch of this rank."""
        return dict(self._carry or {})

    def load_state_dict(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Continue with the batch of all ranks' ``states``, split anew where the number of ranks differs."""
        if len(states) == self._world_size:
            state = states[self._rank]
        else:
            mine = slice(self._first, self._first + self._num)
            state = {name: torch.cat([rank[name] for rank in states])[mine] for name in states[0]}
            self._seed_rank()
        self._carry = {name: value.to(self._device) for name, value in state.items()} or None


def _are_right(logits: Tensor, answers: Tensor) -> Tensor:
    """Return which answers are right in every cell that counts, (B,) bool."""
    return ((logits.argmax(dim=-1) == answers) | (answers < 0)).flatten(1).all(dim=1)


def _reveal(questions: Tensor, answers: Tensor, most: int) -> Tensor:
    """Fill 0 to ``most`` random blank cells (0) of each question (B, height, W) with the answer."""
    key = torch.rand(questions.flatten(1).shape).to(questions.device) + (questions.flatten(1) > 0)
    rank = key.argsort(dim=1).argsort(dim=1)  # blank cells first
    num = torch.randint(most + 1, (len(questions), 1)).to(questions.device)
    return torch.where((rank < num).view(questions.shape), answers, questions)


def _uniform(like: Tensor) -> Tensor:
    """Return uniform random numbers (B,) on the device of ``like``, drawn on the CPU."""
    return torch.rand(len(like)).to(like.device)
