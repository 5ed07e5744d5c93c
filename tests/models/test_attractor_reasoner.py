"""The attractor reasoner: what its settings mean, and what iterating it promises."""

from dataclasses import replace

import pytest
import torch

from attractor import ConfigError, DataError, Steps, Tolerance
from attractor.models.reasoning import AttractorReasoner, AttractorReasonerConfig
from attractor.nn import ConvolutionUpdateConfig
from attractor.testing import UpdateConformance

SMALL = AttractorReasonerConfig(update=ConvolutionUpdateConfig(width=8), evaluations_per_segment=6, backprop_steps=2)


def reasoner(**changes) -> AttractorReasoner:
    torch.manual_seed(0)
    return AttractorReasoner(replace(SMALL, **changes)).eval()


def questions(batch: int = 3, size: int = 7) -> torch.Tensor:
    return torch.randint(0, 4, (batch, size, size), generator=torch.Generator().manual_seed(0))


class TestConvolutionUpdate(UpdateConformance):
    def make_update(self):
        model = reasoner()
        x = model.embedding(questions()).detach()
        return lambda y: model.update(y, x)

    def make_state(self):
        return torch.randn(3, 7, 7, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_depth_adds_up() -> None:
    """Five evaluations and then seven are twelve."""
    model, q = reasoner(), questions()
    start = model.start(q)
    once = model(q, start, stop=Steps(12))
    twice = model(q, model(q, start, stop=Steps(5)).solution.value, stop=Steps(7))
    assert torch.equal(once.logits, twice.logits)


def test_a_segment_counts_the_same_with_and_without_gradients() -> None:
    """Training and evaluation make the same number of updates, to the same state."""
    model, q = reasoner(), questions()
    start = model.start(q)
    tracked = model(q, start).solution.value
    with torch.no_grad():
        plain = model(q, start, stop=Steps(SMALL.evaluations_per_segment)).solution.value
    assert torch.allclose(tracked, plain, atol=1e-6)
    assert tracked.requires_grad


def test_only_tracked_evaluations_carry_gradients() -> None:
    """With one tracked evaluation, the gradient is that of one damped step from where the others ended."""
    model, q = reasoner(backprop_steps=1), questions()
    start = model.start(q)
    model(q, start).logits.square().sum().backward()
    found = model.head.weight.grad.clone(), model.update.inner.weight.grad.clone()
    model.zero_grad()
    with torch.no_grad():
        before = model(q, start, stop=Steps(SMALL.evaluations_per_segment - 1)).solution.value
    after = torch.lerp(before, model.update(before, model.embedding(q)), SMALL.damping)
    model.head(after).square().sum().backward()
    assert torch.allclose(found[0], model.head.weight.grad, rtol=1e-4, atol=1e-6)
    assert torch.allclose(found[1], model.update.inner.weight.grad, rtol=1e-4, atol=1e-6)


def test_noise_is_for_training_alone() -> None:
    """Evaluation is deterministic given the start; training is not."""
    model, q = reasoner(noise=0.1), questions()
    start = model.start(q)
    assert torch.equal(model(q, start).logits, model(q, start).logits)
    model.train()
    assert not torch.equal(model(q, start).logits, model(q, start).logits)


def test_nothing_travels_through_obstacles() -> None:
    """Two halves of a grid, with a wall as thick as one update sees, do not know of each other; without obstacles they do."""
    q = torch.ones(1, 5, 9, dtype=torch.long)
    q[:, :, 4:6] = 0
    other = q.clone()
    other[:, :, 6:] = 2
    for obstacles, knows in (((0,), False), ((), True)):
        model = reasoner(obstacles=obstacles, random_init=False)
        with torch.no_grad():
            a, b = (model(x, stop=Steps(12)).logits[:, :, :3] for x in (q, other))
        assert torch.equal(a, b) != knows


def test_the_start_is_random_or_zero() -> None:
    """random_init decides; a generator makes it repeatable."""
    model, q = reasoner(), questions()
    a, b = (model.start(q, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.std() > 0.5
    assert reasoner(random_init=False).start(q).abs().max() == 0


def test_breadth_keeps_the_calmest_start() -> None:
    """More restarts never end with a larger residual, and their evaluations add up."""
    model, q = reasoner(), questions()
    one, four = (
        model.solve(q, depth=20, tolerance=1e-12, breadth=n, generator=torch.Generator().manual_seed(0)) for n in (1, 4)
    )
    assert (four.solution.residual <= one.solution.residual).all()
    assert (four.solution.evaluations == 4 * one.solution.evaluations).all()


def test_puzzles_do_not_influence_each_other() -> None:
    """Every grid is one equation: alone or in a batch, the same answer."""
    model, q = reasoner(), questions(4)
    generator = torch.Generator().manual_seed(0)
    start = model.start(q, generator)
    with torch.no_grad():
        whole = model(q, start, stop=Steps(9)).logits
        alone = model(q[2:3], start[2:3], stop=Steps(9)).logits
    assert torch.allclose(whole[2:3], alone, atol=1e-5)


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
def test_questions_that_are_no_grids_of_symbols_are_refused(bad: torch.Tensor) -> None:
    """One sentence with the shape and the symbols."""
    with pytest.raises(DataError, match="symbols 0 to 3"):
        reasoner()(bad)


class Shrinking(AttractorReasoner):
    """Halves the distance to zero at a rate that the question's symbol says, and notes how many puzzles it is asked for."""

    asked: list[int]

    def make_update(self, questions):
        rate = (0.05 + 0.3 * questions[:, :1, :1, None]).to(torch.float32)

        def update(y):
            self.asked.append(len(y))
            return 1 + rate * (y - 1)

        return update


@torch.no_grad()
def test_puzzles_at_rest_leave_the_batch_and_change_nothing() -> None:
    """Each is evaluated as often as alone and ends where it would alone; the slow ones are computed without the quick ones."""
    model = Shrinking(replace(SMALL, damping=1.0)).eval()
    q = torch.tensor([0, 2, 1, 0])[:, None, None].expand(4, 5, 5).contiguous()
    start = torch.randn(4, 5, 5, 8, generator=torch.Generator().manual_seed(2))
    stop = Tolerance(rtol=1e-4, max_evaluations=64, patience=None)
    model.asked = []
    whole = model(q, start, stop=stop).solution
    asked = model.asked
    assert asked[0] == 4
    assert asked[-1] == 1
    assert sum(asked) == int(whole.evaluations.sum())
    for i in range(4):
        alone = model(q[i : i + 1], start[i : i + 1], stop=stop).solution
        assert torch.equal(alone.value[0], whole.value[i])
        assert alone.evaluations[0] == whole.evaluations[i]


@pytest.mark.parametrize("solver", ["picard", "anderson"])
@pytest.mark.parametrize("gradient", ["phantom", "one-step", "implicit"])
def test_every_solver_goes_with_every_gradient(solver: str, gradient: str) -> None:
    """All parameters of the update get one, and the state is the one that the solver found."""
    model, q = reasoner(solver=solver, gradient=gradient, noise=0.0), questions()
    output = model(q, model.start(q, torch.Generator().manual_seed(0)))
    output.logits.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.update.parameters())


def test_the_implicit_gradient_is_the_unrolled_one_at_rest() -> None:
    """At a fixed point of a contraction, the exact gradient is that of a long unrolled loop, and the one-step gradient is not."""
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
        found[gradient] = model.update.inner.weight.grad.clone()
    exact = found["phantom"]
    assert (found["implicit"] - exact).norm() < 0.05 * exact.norm()
    assert (found["one-step"] - exact).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize("wrong", [{"solver": "newton"}, {"gradient": "exact"}])
def test_unknown_methods_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        reasoner(**wrong)


def test_the_jacobian_penalty_makes_the_update_contract() -> None:
    """After some steps on the penalty's gradient alone, the update moves disturbances less than before."""
    from attractor import jacobian_penalty

    model, q = reasoner(noise=0.0), questions()
    state = model(q, stop=Steps(20)).solution.value.detach()
    optimizer = torch.optim.Adam(model.update.parameters(), lr=1e-2)
    sizes = []
    for step in range(20):
        penalty = jacobian_penalty(model.make_update(q), state, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        sizes.append(float(penalty.detach()))
    assert sizes[-1] < 0.9 * sizes[0]
