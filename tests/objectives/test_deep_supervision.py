"""Deep supervision: when puzzles are replaced, and which loss is minimised."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attractor import recipes
from attractor.data import maze
from attractor.data.maze.paths import steps_to_goal_mod_3
from attractor.errors import ConfigError
from attractor.objectives import DeepSupervision, DeepSupervisionConfig
from attractor.objectives.deep_supervision import stablemax_cross_entropy


@dataclass
class Output:
    logits: Tensor
    solution: Any
    halt: Tensor | None = None
    auxiliary: Tensor | None = None


class Model(nn.Module):
    """Always right or always wrong, with a fixed halting logit; the state counts segments."""

    def __init__(self, *, right: bool, halt: float | None = None) -> None:
        super().__init__()
        self.right, self.halt = right, halt
        self.seen: list[Tensor] = []

    def forward(self, questions: Tensor, state: Tensor) -> Output:
        self.seen.append(state[:, 0, 0, 0].clone())
        answers = questions if self.right else 1 - questions
        logits = 9.0 * nn.functional.one_hot(answers, 2).float()
        solution = type("S", (), {"value": state + 1, "residual": torch.zeros(len(state))})
        halt = None if self.halt is None else torch.full((len(state),), self.halt)
        return Output(logits, solution, halt)


def objective(peak_flops: float | None = None, rank: int = 0, world_size: int = 1, **settings) -> DeepSupervision:
    grids = np.random.default_rng(0).integers(0, 2, (20, 2, 2)).astype(np.uint8)
    config = DeepSupervisionConfig(**{"batch_size": 12, "max_segments": 4, **settings})
    torch.manual_seed(0)
    return DeepSupervision(
        grids,
        grids,
        config,
        init_state=lambda q: torch.zeros(*q.shape, 1),
        augment=lambda q, a, rng: (q, a),
        peak_flops=peak_flops,
        rank=rank,
        world_size=world_size,
    )


def test_every_puzzle_counts_its_own_segments() -> None:
    """A step adds one segment or starts a new puzzle; no state reaches ``max_segments``; counts are staggered."""
    model, supervision = Model(right=False), objective()
    for _ in range(12):
        supervision.step(model)
    ages = torch.stack(model.seen)
    assert ages.max() == 3
    assert bool(((ages[1:] == ages[:-1] + 1) | (ages[1:] == 0)).all())
    assert len(ages[8].unique()) > 1


@pytest.mark.parametrize(("halt", "oldest"), [(5.0, 0), (-5.0, 3)])
def test_halted_puzzles_are_replaced(halt: float, oldest: int) -> None:
    """Without exploration, a puzzle that the head takes for solved is replaced at once."""
    model, supervision = Model(right=False, halt=halt), objective(replace_halted=True, halt_exploration_prob=0.0)
    for _ in range(9):
        supervision.step(model)
    assert torch.stack(model.seen[1:]).max() == oldest


def test_exploration_keeps_some_halted_puzzles() -> None:
    """With exploration, some get a second segment and more."""
    model, supervision = Model(right=False, halt=5.0), objective(replace_halted=True, halt_exploration_prob=1.0)
    for _ in range(20):
        supervision.step(model)
    ages = torch.stack(model.seen)
    assert ages.max() == 3
    assert (ages == 0).float().mean() > 0.25


@pytest.mark.parametrize(("right", "halt"), [(True, 2.0), (False, 2.0), (True, -1.0)])
def test_the_halting_loss_is_added_with_its_weight(right: bool, halt: float) -> None:
    """It is the binary cross-entropy of the halting logit against whether the answer is right."""
    without, _ = objective().step(Model(right=right))
    with_halting, metrics = objective(halting_weight=0.3).step(Model(right=right, halt=halt))
    expected = nn.functional.binary_cross_entropy_with_logits(torch.tensor(halt), torch.tensor(float(right)))
    assert with_halting - without == pytest.approx(0.3 * float(expected), abs=1e-6)
    assert metrics["batch_exact"] == float(right)


def test_stablemax_equals_its_definition() -> None:
    """``s(x) = x + 1`` for ``x ≥ 0``, else ``1 / (1 − x)``; the loss is the mean of ``−log(s(x_target) / Σ s(x))``."""
    logits, targets = 6 * torch.randn(50, 5, dtype=torch.float64), torch.randint(0, 5, (50,))
    s = torch.where(logits >= 0, logits + 1, 1 / (1 - logits))
    expected = -(s / s.sum(dim=1, keepdim=True)).gather(1, targets[:, None]).log().mean()
    assert float(stablemax_cross_entropy(logits, targets)) == pytest.approx(float(expected), rel=1e-5)


def test_a_saved_batch_is_restored_exactly() -> None:
    """Steps after loading equal the steps of the run that was saved."""
    model, first = Model(right=False), objective()
    for _ in range(3):
        first.step(model)
    saved, random = {k: v.clone() for k, v in first.state_dict().items()}, torch.get_rng_state()
    for _ in range(3):
        first.step(model)
    second = objective()
    second.load_state_dict([saved])
    torch.set_rng_state(random)
    again = Model(right=False)
    for _ in range(3):
        second.step(again)
    assert torch.equal(torch.stack(model.seen[3:]), torch.stack(again.seen))


@pytest.mark.parametrize(
    "wrong",
    [
        {"cross_entropy": "hardmax"},
        {"halting_weight": -1.0},
        {"jacobian_weight": -1.0},
        {"halt_exploration_prob": 2.0},
        {"replace_solved_prob": -0.1},
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any]) -> None:
    """The error names the setting."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DeepSupervisionConfig(**wrong)


def test_the_jacobian_penalty_is_added_with_its_weight() -> None:
    """At the last state of the segment, for the model's update with these questions."""

    class Linear(Model):
        def penalized_map(self, questions: Tensor, state: Tensor) -> Any:
            return lambda y: 3 * y, state

    without, _ = objective().step(Linear(right=False))
    with_penalty, metrics = objective(jacobian_weight=0.5).step(Linear(right=False))
    assert float(metrics["jacobian"]) == pytest.approx(9, rel=0.5)  # ‖3 I‖² / n, estimated by random probes
    assert float(with_penalty - without) == pytest.approx(0.5 * float(metrics["jacobian"]), rel=1e-4)


@pytest.mark.parametrize(
    ("right", "residual", "converged", "evaluations"), [(True, 0.0, 1, 3), (False, 1.0, 0, 12), (True, math.nan, 0, 12)]
)
def test_held_out_metrics_are_those_of_a_known_model(right, residual, converged, evaluations) -> None:
    """With 3 evaluations a segment and at most 4 segments. Random numbers and the mode of the model stay."""

    class Known(Model):
        evaluations_per_segment = 3

        def forward(self, questions: Tensor, state: Tensor) -> Output:
            assert not self.training
            output = super().forward(questions, state)
            output.solution.residual = torch.full((len(state),), residual)
            return output

    model, supervision, random = Known(right=right), objective(), torch.get_rng_state()
    grids = torch.ones(5, 2, 2, dtype=torch.long)
    supervision._held_out = grids, grids
    assert supervision.evaluate(model) == {
        "held_out": float(right),
        "held_out_converged": converged,
        "held_out_evaluations": evaluations,
    }
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert objective().evaluate(model) == {}


def test_puzzles_with_nonfinite_states_are_replaced() -> None:
    """The training loop skips such a step; the next step starts new puzzles in their place."""

    class Diverging(Model):
        def forward(self, questions: Tensor, state: Tensor) -> Output:
            output = super().forward(questions, state)
            if len(self.seen) == 3:
                output.solution.value[2:5] = float("inf")
            return output

    model, supervision = Diverging(right=False), objective(max_segments=50)
    for _ in range(5):
        supervision.step(model)
    assert model.seen[3][2:5].tolist() == [0, 0, 0]
    assert bool(torch.stack(model.seen).isfinite().all())
    assert model.seen[3][5:].min() > 0


def test_diagnostics_report_throughput_and_mfu() -> None:
    """Segments of all puzzles per second since the last call; MFU is their FLOP/s divided by the device's peak."""

    class KnownCost(Model):
        def flops_per_puzzle(self, num_cells: int, *, training: bool) -> float:
            return 5.0 * num_cells if training else 0.0

    model, supervision = KnownCost(right=False), objective(peak_flops=1e6)
    assert supervision.diagnostics(model)["segments/s"] == 0
    for _ in range(3):
        supervision.step(model)
    figures = supervision.diagnostics(model)
    assert figures["segments/s"] > 0
    assert figures["mfu"] == pytest.approx(figures["segments/s"] * 5 * 4 / 1e6)
    assert supervision.diagnostics(model)["segments/s"] == 0
    assert "mfu" not in objective().diagnostics(model)


def test_ranks_draw_different_puzzles_and_a_batch_is_split_anew_on_loading() -> None:
    """Two ranks have different halves of a batch; one process continues with both, and three with a third each."""
    ranks = [objective(rank=rank, world_size=2) for rank in range(2)]
    for rank in ranks:
        torch.manual_seed(0)  # all ranks start with one seed
        rank.step(Model(right=False))
    states = [rank.state_dict() for rank in ranks]
    assert [len(state["questions"]) for state in states] == [6, 6]
    assert not torch.equal(states[0]["questions"], states[1]["questions"])
    batch = torch.cat([state["questions"] for state in states])
    for size in (1, 3):
        parts = []
        for rank in range(size):
            part = objective(rank=rank, world_size=size)
            part.load_state_dict(states)
            parts.append(part.state_dict()["questions"])
        assert torch.equal(torch.cat(parts), batch)
        assert {len(part) for part in parts} == {12 // size}


def test_the_log_has_the_median_residual() -> None:
    """One evaluation from a state of zero has an enormous relative residual, which a mean would show alone."""

    class Fresh(Model):
        def forward(self, questions: Tensor, state: Tensor) -> Output:
            output = super().forward(questions, state)
            output.solution.residual = torch.tensor([1e6, *[0.25] * (len(state) - 1)])
            return output

    _, metrics = objective().step(Fresh(right=True))
    assert metrics["residual"] == 0.25


def test_the_auxiliary_loss_teaches_the_steps_to_the_goal_modulo_3() -> None:
    """Targets belong to the carried questions, windows included; the loss is a weighted mean over cells with a target."""
    mazes = maze.generate(8, 13, seed=0)
    seen: list[Tensor] = []

    class Auxiliary(Model):
        def forward(self, questions: Tensor, state: Tensor) -> Output:
            seen.append(questions)
            output = super().forward(torch.zeros_like(questions), state)
            logits = torch.arange(3.0).expand(*questions.shape, 3)
            return replace(output, logits=nn.functional.pad(output.logits, (0, 3)), auxiliary=logits)

    supervision = DeepSupervision(
        mazes.questions,
        mazes.answers,
        DeepSupervisionConfig(batch_size=4, max_segments=13, windows=(7,), augment=False, auxiliary_weight=0.5),
        init_state=lambda questions: torch.zeros(*questions.shape, 1),
        augment=mazes.puzzle.augment,
        crop=mazes.puzzle.crop,
        auxiliary_targets=mazes.puzzle.auxiliary_targets,
    )
    for step in range(20):
        loss, metrics = supervision.step(Auxiliary(right=True), step / 20)
        targets = torch.from_numpy(steps_to_goal_mod_3(seen[-1].numpy().astype(np.uint8)))
        expected = -torch.arange(3.0).log_softmax(0)[targets[targets >= 0]].mean()
        assert torch.allclose(metrics["auxiliary"], expected)
        logits = nn.functional.pad(9.0 * nn.functional.one_hot(torch.zeros_like(seen[-1]), 2).float(), (0, 3))
        answer = nn.functional.cross_entropy(logits.flatten(0, -2), supervision.state_dict()["answers"].flatten())
        assert torch.allclose(loss, answer + 0.5 * expected)
    assert {len(questions[0]) for questions in seen} == {7, 13}


def test_the_head_of_the_auxiliary_loss_is_there_when_it_has_a_weight() -> None:
    """A recipe decides by the weight; the head exists for training only, and other puzzles and models refuse it."""
    sizes: dict[str, Any] = {"num_cells": 81, "num_symbols": 4, "num_classes": 5}
    for weight, classes in ((1.0, 3), (0.0, 0)):
        recipe = recipes.override(recipes.get("maze/walls"), [f"supervision.auxiliary_weight={weight}"])
        model = recipes.fit_to_puzzles(recipe, **sizes).model.build()
        questions = torch.ones(2, 9, 9, dtype=torch.long)
        found = model(questions).auxiliary
        assert (None if found is None else found.shape) == ((2, 9, 9, classes) if classes else None)
        assert model.eval()(questions).auxiliary is None
    for name in ("sudoku/6x6", "maze/walls-trm"):
        with pytest.raises(ConfigError, match="for an attractor on mazes"):
            recipes.override(recipes.get(name), ["supervision.auxiliary_weight=1"])


@pytest.mark.parametrize("augment", [True, False])
def test_puzzles_are_augmented_unless_the_settings_say_no(augment: bool) -> None:
    """Augmentation is called for every draw, or never."""
    calls: list[int] = []

    def count(questions, answers, rng):
        calls.append(len(questions))
        return questions, answers

    supervision = objective(augment=augment)
    supervision._augment = count
    supervision.step(Model(right=True))
    assert calls == ([12] if augment else [])


class Sized(Model):
    """Notes the size of the questions in ``shapes``."""

    def __init__(self, shapes: list[int]) -> None:
        super().__init__(right=True)
        self.shapes = shapes

    def forward(self, questions: Tensor, state: Tensor) -> Output:
        self.shapes.append(questions.shape[1])
        output = super().forward(torch.zeros_like(questions), state)
        return replace(output, logits=nn.functional.pad(output.logits, (0, 3)))


def test_training_begins_on_windows_and_ends_on_whole_mazes():
    mazes = maze.generate(8, 13, seed=0)
    shapes: list[int] = []
    segments: list[int] = []
    drawn: list[tuple[int, int]] = []  # the step, and how many mazes were drawn in it

    def init_state(questions: Tensor) -> Tensor:
        drawn.append((len(shapes), len(questions)))
        return torch.zeros(*questions.shape, 1)

    supervision = DeepSupervision(
        mazes.questions,
        mazes.answers,
        DeepSupervisionConfig(batch_size=4, max_segments=13, windows=(5, 9), augment=False),
        init_state=init_state,
        augment=mazes.puzzle.augment,
        crop=mazes.puzzle.crop,
    )
    for step in range(30):
        supervision.step(Sized(shapes), step / 30)
        segments.append(int(supervision.state_dict()["segments"].max()))
        assert supervision.diagnostics(nn.Identity())["window"] == shapes[-1]
    assert shapes == [5] * 10 + [9] * 10 + [13] * 10
    assert max(segments[:10]) == 5
    assert max(segments[10:20]) <= 9 < max(segments)
    assert [step for step, num in drawn if num == 4] == [0, 10, 20]  # otherwise the states are carried over


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"windows": (4,)}, "from 5 up"),
        ({"windows": (5.5,)}, "whole numbers"),
        ({"windows": (5,), "crop": None}, "a function that crops mazes"),
    ],
)
def test_windows_have_a_size_and_a_function_that_crops_mazes(settings, says) -> None:
    mazes = maze.generate(8, 13, seed=0)
    crop = settings.pop("crop", mazes.puzzle.crop)
    with pytest.raises(ConfigError, match=says):
        DeepSupervision(
            mazes.questions,
            mazes.answers,
            DeepSupervisionConfig(**settings),
            init_state=lambda questions: torch.zeros(*questions.shape, 1),
            augment=mazes.puzzle.augment,
            crop=crop,
        )


@pytest.mark.parametrize(
    ("recipe", "changes", "says"),
    [
        ("sudoku/6x6", ["supervision.windows=[5]"], "windows of mazes; leave it empty for sudoku"),
        ("maze", ["supervision.windows=[5]", "train.guard.loss_spike=6"], "the loss jumps between windows"),
    ],
)
def test_windows_that_a_recipe_cannot_use_are_refused(recipe, changes, says) -> None:
    with pytest.raises(ConfigError, match=says):
        recipes.override(recipes.get(recipe), changes)


@pytest.mark.parametrize(("shape", "sizes"), [((13, 13), [5] * 4 + [13] * 4), ((13, 11), [13] * 8)])
def test_windows_that_do_not_fit_are_left_out(shape, sizes) -> None:
    """Those that are not smaller than the mazes, and all of them if the mazes are not square."""
    mazes = maze.generate(8, 13, seed=0)
    shapes: list[int] = []
    questions, answers = mazes.questions[:, :, : shape[1]], mazes.answers[:, :, : shape[1]]

    supervision = DeepSupervision(
        questions,
        answers,
        DeepSupervisionConfig(batch_size=4, windows=(5, 13, 20), augment=False),
        init_state=lambda questions: torch.zeros(*questions.shape, 1),
        augment=mazes.puzzle.augment,
        crop=mazes.puzzle.crop,
    )
    for step in range(8):
        supervision.step(Sized(shapes), step / 8)
    assert shapes == sizes
