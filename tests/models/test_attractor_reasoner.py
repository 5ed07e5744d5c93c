"""The attractor reasoner: its settings, and the properties of its solves."""

from dataclasses import replace

import pytest
import torch

from attractor import ConfigError, DataError, Steps, Tolerance
from attractor.models.reasoning import AttractorReasoner, AttractorReasonerConfig
from attractor.nn import GatedConvolutionUpdateConfig
from attractor.testing import UpdateConformance

SMALL = AttractorReasonerConfig(
    update=GatedConvolutionUpdateConfig(width=8, hidden=16), evaluations_per_segment=6, backprop_steps=2
)


def reasoner(**changes) -> AttractorReasoner:
    torch.manual_seed(0)
    return AttractorReasoner(replace(SMALL, **changes)).eval()


def questions(batch: int = 3, size: int = 7) -> torch.Tensor:
    return torch.randint(0, 4, (batch, size, size), generator=torch.Generator().manual_seed(0))


class TestGatedConvolutionUpdate(UpdateConformance):
    def make_update(self):
        model = reasoner()
        x = model.embedding(questions()).detach()
        return lambda y: model.update(y, x)

    def make_state(self):
        return torch.rand(3, 7, 7, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_an_evaluation_of_the_gated_update_reaches_the_four_neighbours() -> None:
    """A change in one cell reaches cells at a distance of at most the number of evaluations, in steps along the grid."""
    model = reasoner(damping=1.0, random_init=False)
    q = torch.ones(1, 9, 9, dtype=torch.long)
    other = q.clone()
    other[0, 4, 4] = 2
    row, column = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    distance = (row - 4).abs() + (column - 4).abs()
    for depth in (1, 3):
        changed = (model(q, depth=depth).solution.value != model(other, depth=depth).solution.value).any(dim=-1)[0]
        assert torch.equal(changed, distance <= depth)


@torch.no_grad()
def test_a_closed_gate_keeps_the_state_exactly() -> None:
    """With closed gates every state is a fixed point; with open ones the state is the candidate, within [-1, 1]."""
    model = reasoner(damping=1.0)
    state = torch.rand(3, 7, 7, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    gate = model.update.outer.bias[:8]
    gate.fill_(-200.0)
    assert torch.equal(model(questions(), state, depth=5).solution.value, state)
    gate.fill_(200.0)
    assert model(questions(), 100 * state, depth=1).solution.value.abs().max() <= 1


@torch.no_grad()
def test_depth_adds_up() -> None:
    """Five evaluations followed by seven equal twelve."""
    model, q = reasoner(), questions()
    state = model.init_state(q)
    once = model(q, state, depth=12)
    twice = model(q, model(q, state, depth=5).solution.value, depth=7)
    assert torch.equal(once.logits, twice.logits)


def test_a_segment_is_equal_with_and_without_gradients() -> None:
    """Training and evaluation make the same number of evaluations and reach the same state."""
    model, q = reasoner(), questions()
    state = model.init_state(q)
    tracked = model(q, state).solution.value
    with torch.no_grad():
        untracked = model(q, state, depth=SMALL.evaluations_per_segment).solution.value
    assert torch.allclose(tracked, untracked, atol=1e-6)
    assert tracked.requires_grad
    assert torch.equal(tracked, model(q, state, depth=SMALL.evaluations_per_segment).solution.value)


def test_budgets_are_those_of_the_solver() -> None:
    """A depth is exact, a tolerance solves; both at once, or a depth below the tracked steps, are refused."""
    model, q = reasoner(damping=0.5), questions()
    with torch.no_grad():
        model.update.outer.weight.mul_(0.2)
        state = model.init_state(q)
        assert (model(q, state, depth=7).solution.evaluations == 7).all()
        assert torch.equal(model(q, state, depth=7).logits, model(q, state, stop=Steps(7)).logits)
        solved = model(q, state, tolerance=1e-3).solution
        assert solved.outcome.converged
        assert (solved.residual < 1e-3).all()
        assert model(q, state, max_evaluations=3).solution.outcome.calls == 3
    assert (model.solve(q, depth=5).solution.evaluations == 5).all()
    assert (model.solve(q).solution.residual < 1e-4).all()
    for budget in ({"depth": 3, "tolerance": 0.1}, {"depth": 3, "stop": Steps(3)}, {"depth": 1}):
        with pytest.raises(ConfigError, match=r"depth"):
            model(q, state, **budget)


def test_only_tracked_evaluations_carry_gradients() -> None:
    """With one tracked evaluation, the gradient is that of one damped step from the state before it."""
    model, q = reasoner(backprop_steps=1), questions()
    state = model.init_state(q)
    model(q, state).logits.square().sum().backward()
    found = model.head.weight.grad.clone(), model.update.vertical.weight.grad.clone()
    model.zero_grad()
    with torch.no_grad():
        before = model(q, state, depth=SMALL.evaluations_per_segment - 1).solution.value
    after = torch.lerp(before, model.update(before, model.embedding(q)), SMALL.damping)
    model.head(after).square().sum().backward()
    assert torch.allclose(found[0], model.head.weight.grad, rtol=1e-4, atol=1e-6)
    assert torch.allclose(found[1], model.update.vertical.weight.grad, rtol=1e-4, atol=1e-6)


def test_a_segment_tolerance_changes_nothing_where_all_evaluations_are_tracked() -> None:
    """There is nothing to end sooner."""
    q = questions()
    found = []
    for tolerance in (0.0, 1e-3):
        model = reasoner(backprop_steps=SMALL.evaluations_per_segment, segment_tolerance=tolerance)
        found.append(model(q, model.init_state(q, torch.Generator().manual_seed(0))).logits)
    assert torch.equal(*found)


def test_noise_is_added_only_in_training() -> None:
    """Evaluation is deterministic given the initial state; training is not."""
    model, q = reasoner(noise=0.1), questions()
    state = model.init_state(q)
    assert torch.equal(model(q, state).logits, model(q, state).logits)
    model.train()
    assert not torch.equal(model(q, state).logits, model(q, state).logits)


def test_no_information_passes_obstacles() -> None:
    """A wall as wide as one update's receptive field separates two halves of a grid; without obstacles it does not."""
    q = torch.ones(1, 5, 9, dtype=torch.long)
    q[:, :, 4:6] = 0
    other = q.clone()
    other[:, :, 6:] = 2
    for obstacles, is_influenced in (((0,), False), ((), True)):
        model = reasoner(obstacles=obstacles, random_init=False)
        with torch.no_grad():
            a, b = (model(x, depth=12).logits[:, :, :3] for x in (q, other))
        assert torch.equal(a, b) != is_influenced


def test_the_initial_state_is_random_or_zero() -> None:
    """``random_init`` decides; a generator makes it reproducible."""
    model, q = reasoner(), questions()
    a, b = (model.init_state(q, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.std() > 0.5
    assert reasoner(random_init=False).init_state(q).abs().max() == 0


def test_breadth_keeps_the_restart_with_the_lowest_residual() -> None:
    """More restarts never increase the residual, and their evaluations add up."""
    model, q = reasoner(), questions()
    one, four = (
        model.solve(q, max_evaluations=20, tolerance=1e-12, breadth=n, generator=torch.Generator().manual_seed(0))
        for n in (1, 4)
    )
    assert (four.solution.residual <= one.solution.residual).all()
    assert torch.equal(four.solution.outcome.residual, four.solution.residual)
    assert (four.solution.evaluations == 4 * one.solution.evaluations).all()


def test_puzzles_do_not_influence_each_other() -> None:
    """A puzzle has the same answer alone and in a batch."""
    model, q = reasoner(), questions(4)
    generator = torch.Generator().manual_seed(0)
    state = model.init_state(q, generator)
    with torch.no_grad():
        batch = model(q, state, depth=9).logits
        alone = model(q[2:3], state[2:3], depth=9).logits
    assert torch.allclose(batch[2:3], alone, atol=1e-5)


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(7, 7, dtype=torch.long),
        torch.full((1, 7, 7), 4),
        torch.full((1, 7, 7), -1),
        torch.zeros(0, 7, 7, dtype=torch.long),
        torch.zeros(1, 7, 7, dtype=torch.uint8),
    ],
)
def test_invalid_questions_are_refused(bad: torch.Tensor) -> None:
    """The error names the shape and the symbols."""
    with pytest.raises(DataError, match="symbols 0 to 3"):
        reasoner()(bad)


class Shrinking(AttractorReasoner):
    """Contracts to one at a rate set by the question's first symbol, and records every evaluation's batch size."""

    batch_sizes: list[int]

    def make_update(self, questions, noise=None):
        rate = (0.05 + 0.3 * questions[:, :1, :1, None]).to(torch.float32)

        def update(y):
            self.batch_sizes.append(len(y))
            return 1 + rate * (y - 1)

        return update


@torch.no_grad()
def test_converged_puzzles_are_not_computed_again() -> None:
    """Each puzzle's evaluations and value are those of its own solve; slow puzzles are computed without fast ones."""
    model = Shrinking(replace(SMALL, damping=1.0)).eval()
    q = torch.tensor([0, 2, 1, 0])[:, None, None].expand(4, 5, 5).contiguous()
    state = torch.randn(4, 5, 5, 8, generator=torch.Generator().manual_seed(2))
    stop = Tolerance(rtol=1e-4, max_evaluations=64, patience=None)
    model.batch_sizes = []
    batch = model(q, state, stop=stop).solution
    sizes = model.batch_sizes
    assert sizes[0] == 4
    assert sizes[-1] == 1
    assert sum(sizes) == int(batch.evaluations.sum())
    for i in range(4):
        alone = model(q[i : i + 1], state[i : i + 1], stop=stop).solution
        assert torch.equal(alone.value[0], batch.value[i])
        assert alone.evaluations[0] == batch.evaluations[i]


@pytest.mark.parametrize("solver", ["picard", "anderson"])
@pytest.mark.parametrize("gradient", ["phantom", "one-step", "implicit"])
def test_every_solver_works_with_every_gradient(solver: str, gradient: str) -> None:
    """All parameters of the update get a gradient."""
    model, q = reasoner(solver=solver, gradient=gradient, noise=0.0), questions()
    output = model(q, model.init_state(q, torch.Generator().manual_seed(0)))
    output.logits.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.update.parameters())


def test_the_implicit_gradient_equals_the_unrolled_one_at_a_fixed_point() -> None:
    """At the fixed point of a contraction it equals that of a long unrolled loop; the one-step gradient does not."""
    found = {}
    for gradient, segment, tracked in (("implicit", 200, 1), ("one-step", 200, 1), ("phantom", 200, 60)):
        model, q = (
            reasoner(
                gradient=gradient, noise=0.0, evaluations_per_segment=segment, backprop_steps=tracked, random_init=False
            ),
            questions(1, 5),
        )
        with torch.no_grad():
            model.update.outer.weight.mul_(0.2)
        model(q).logits.square().mean().backward()
        found[gradient] = model.update.vertical.weight.grad.clone()
    exact = found["phantom"]
    assert (found["implicit"] - exact).norm() < 0.05 * exact.norm()
    assert (found["one-step"] - exact).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize("wrong", [{"solver": "newton"}, {"gradient": "exact"}])
def test_unknown_methods_are_refused(wrong: dict[str, str]) -> None:
    """The error names the setting."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        reasoner(**wrong)


def test_the_jacobian_penalty_makes_the_update_contract() -> None:
    """Twenty optimiser steps on the penalty alone reduce the norm of the Jacobian."""
    from attractor import jacobian_penalty

    model, q = reasoner(noise=0.0), questions()
    state = model(q, depth=20).solution.value.detach()
    optimizer = torch.optim.Adam(model.update.parameters(), lr=1e-2)
    sizes = []
    for step in range(20):
        penalty = jacobian_penalty(model.make_update(q), state, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        sizes.append(float(penalty.detach()))
    assert sizes[-1] < 0.9 * sizes[0]
