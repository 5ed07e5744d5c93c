"""Judging: what the figures mean, on a model whose behaviour is known."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_map

from attractor.cli import demo
from attractor.data import maze
from attractor.evaluation import DepthPoint, evaluate_depths, run_restarts, trajectory
from attractor.models.reasoning import AttractorReasonerConfig
from attractor.plots import plot_accuracy, plot_trajectory, render_digits


class Countdown:
    """A reasoner whose grid i is right from evaluation ``right[i]`` on, and at rest from ``rest[i]`` on."""

    def __init__(self, right: list[int], rest: list[int]) -> None:
        self.right, self.rest = torch.tensor(right), torch.tensor(rest)
        self.work = 0

    def start(self, questions):
        return torch.stack([questions[:, 0, 0], torch.zeros(len(questions), dtype=torch.long)], dim=1)

    def __call__(self, questions, state, *, stop):
        self.work += len(questions) * stop.n
        state = state + torch.tensor([0, stop.n])
        which, made = state.unbind(1)
        answer = (made >= self.right[which]).long()
        logits = torch.nn.functional.one_hot(answer, 2).float()[:, None, None, :].expand(-1, 1, 1, -1)
        residual = torch.where(made >= self.rest[which], 1e-9, 1.0)
        return SimpleNamespace(logits=logits, solution=SimpleNamespace(value=state, residual=residual))


def test_every_depth_is_judged_and_grids_at_rest_leave() -> None:
    """Shares by depth, the end, and the work are those of the known model."""
    model = Countdown(right=[2, 5, 100, 3], rest=[4, 8, 4, 1000])
    questions = torch.arange(4)[:, None, None]
    done = []
    found = evaluate_depths(
        model, questions, torch.ones(4, 1, 1), depths=(2, 4, 8, 16), advance=done.append, batch_size=3
    )
    assert [p.exact for p in found.points] == [0.25, 0.5, 0.75, 0.75]
    assert [p.converged for p in found.points] == [0, 0.5, 0.75, 0.75]
    assert (found.exact, found.converged) == (0.75, 0.75)
    assert found.accuracy_given_converged == pytest.approx(2 / 3)
    assert found.evaluations == (4 + 8 + 4 + 16) / 4
    assert model.work == 4 + 8 + 4 + 16
    assert sum(done) == 4


def test_where_nothing_rests_its_worth_is_unknown() -> None:
    """NaN, not a number that looks like a result."""
    found = evaluate_depths(
        Countdown(right=[1], rest=[99]), torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1), depths=(1, 2)
    )
    assert math.isnan(found.accuracy_given_converged)


def test_pictures_are_written(tmp_path) -> None:
    """PNG and GIF open, with a frame a depth."""
    from PIL import Image

    frames = [torch.rand(5, 5, 5).softmax(-1) for _ in range(9)]
    plot_trajectory(frames, list(range(1, 10)), [0.1] * 9, strip=tmp_path / "s.png", animation=tmp_path / "s.gif")
    with Image.open(tmp_path / "s.gif") as image:
        assert image.n_frames == 9
    points = [DepthPoint(depth=d, exact=0.5, converged=0.1, residual=0.1) for d in (1, 2, 4)]
    plot_accuracy({"5×5": points}, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.width > 300


def test_settling_follows_one_grid() -> None:
    """One frame and one residual a depth."""
    frames, residuals = trajectory(Countdown(right=[3], rest=[4]), torch.zeros(1, 1, dtype=torch.long), (1, 2, 3, 4))
    assert [int(f.argmax()) for f in frames] == [0, 0, 1, 1]
    assert residuals[-1] < 1e-6 < residuals[0]


def test_settling_ends_at_rest_and_starts_where_it_is_told() -> None:
    """The frame that is below the tolerance is the last; a state already far on is at rest at once."""
    question, model = torch.zeros(1, 1, dtype=torch.long), Countdown(right=[3], rest=[4])
    assert len(trajectory(model, question, range(1, 9), tolerance=1e-4)[0]) == 4
    far = torch.tensor([[0, 50]])
    assert len(trajectory(model, question, range(1, 9), start=far, tolerance=1e-4)[0]) == 1


class Far(torch.Tensor):
    """A tensor of another device, which refuses to meet tensors of the CPU as a GPU's do. The device is called meta."""

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> "Far":
        far = torch.Tensor._make_wrapper_subclass(cls, near.shape, dtype=near.dtype, device="meta")
        far.near = near
        return far

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name, first = func.overloadpacket.__name__, args[0]
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if name in ("index", "index_put_"):  # indices of the CPU are welcome everywhere
            tensors = [first, *args[2:3]]
        elif name in ("copy_", "_to_copy"):
            tensors = []
        kinds = {isinstance(x, Far) for x in tensors if x.ndim}
        assert len(kinds) < 2, f"{name}: tensors of two devices meet"
        goes = str(kwargs.pop("device", None) or "meta")
        found = func(*tree_map(cls._near, args), **tree_map(cls._near, kwargs))
        if goes == "cpu" or name == "_local_scalar_dense" or not isinstance(first, Far | list | tuple):
            return found
        return tree_map(lambda x: Far(x) if isinstance(x, torch.Tensor) else x, found)

    @staticmethod
    def _near(x):
        return x.near if isinstance(x, Far) else x


class Away(Countdown):
    """The same model on the other device."""

    def start(self, questions):
        assert isinstance(questions, Far)
        return Far(super().start(questions.near))

    def __call__(self, questions, state, *, stop):
        assert isinstance(questions, Far)
        assert isinstance(state, Far)
        output = super().__call__(questions.near, state.near, stop=stop)
        solution = SimpleNamespace(value=Far(output.solution.value), residual=Far(output.solution.residual))
        return SimpleNamespace(logits=Far(output.logits), solution=solution)


def test_judging_looks_at_another_device_from_the_cpu() -> None:
    """The figures and frames are those of the CPU, wherever model and questions are, and come as tensors of the CPU."""
    questions, answers = torch.arange(4)[:, None, None], torch.ones(4, 1, 1)
    right, rest = [2, 5, 100, 3], [4, 8, 4, 1000]
    near = evaluate_depths(Countdown(right, rest), questions, answers, depths=(2, 4, 8), batch_size=3)
    assert evaluate_depths(Away(right, rest), Far(questions), answers, depths=(2, 4, 8), batch_size=3) == near
    assert evaluate_depths(Away(right, rest), Far(questions), Far(answers), depths=(2, 4, 8), batch_size=3) == near
    frames, residuals = trajectory(Away(right, rest), Far(questions[0]), (1, 2, 3, 4))
    assert not any(isinstance(frame, Far) for frame in frames)
    assert [int(f.argmax()) for f in frames] == [0, 1, 1, 1]
    assert residuals[-1] < 1e-6
    starts = run_restarts(Away(right, rest), Far(questions), depths=(2, 4), breadth=2)
    assert not isinstance(starts.answers, Far)


def test_the_demo_asks_where_the_model_is(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Its questions go to the model's device, for figures and for pictures."""
    model, seen = AttractorReasonerConfig().build().to("meta"), []

    def spy(model, questions, *rest, **settings):
        seen.append(questions.device)
        return ([], []) if questions.ndim == 2 else "judged"

    monkeypatch.setattr(demo, "SIZES", {5: 2})
    monkeypatch.setattr(demo, "judge", spy)
    monkeypatch.setattr(demo, "settling", spy)
    monkeypatch.setattr(demo, "draw_settling", lambda *frames, **places: None)
    monkeypatch.setattr(demo, "draw_curves", lambda *curves: None)
    demo.judge_sizes(model, maze.generate(2, 7, seed=0), demo.Console())
    demo.write_pictures(model, {}, tmp_path)
    assert [device.type for device in seen] == ["meta", "meta"]


def test_a_given_that_was_answered_otherwise_is_red() -> None:
    """Black where it was kept; red where another digit or a blank stands in its place; neither where nothing was given."""
    question = torch.tensor([[1, 2, 3, 4], [0] * 4, [0] * 4, [0] * 4])
    answer = torch.tensor([[1, 3, 0, 4], [1] * 4, [1] * 4, [1] * 4])
    picture = render_digits(question, (2, 2))(torch.nn.functional.one_hot(answer, 5).float(), 40)
    inner = [picture[4:36, 40 * column + 4 : 40 * column + 36] for column in range(4)]
    red = [bool(((cell[..., 0] > 200) & (cell[..., 1] < 60)).any()) for cell in inner]
    black = [bool((cell.max(axis=-1) < 60).any()) for cell in inner]
    assert red == [False, True, True, False]
    assert black == [True, False, False, True]
