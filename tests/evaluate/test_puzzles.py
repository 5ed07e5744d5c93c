"""Judging: what the figures mean, on a model whose behaviour is known."""

import math
from types import SimpleNamespace

import pytest
import torch

from attractor.evaluate import DepthPoint, draw_curves, draw_settling, judge, settling


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
    found = judge(model, questions, torch.ones(4, 1, 1), depths=(2, 4, 8, 16), advance=done.append, batch_size=3)
    assert [p.exact for p in found.points] == [0.25, 0.5, 0.75, 0.75]
    assert [p.settled for p in found.points] == [0, 0.5, 0.75, 0.75]
    assert (found.exact, found.settled) == (0.75, 0.75)
    assert found.exact_of_settled == pytest.approx(2 / 3)
    assert found.evaluations == (4 + 8 + 4 + 16) / 4
    assert model.work == 4 + 8 + 4 + 16
    assert sum(done) == 4


def test_where_nothing_rests_its_worth_is_unknown() -> None:
    """NaN, not a number that looks like a result."""
    found = judge(
        Countdown(right=[1], rest=[99]), torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1), depths=(1, 2)
    )
    assert math.isnan(found.exact_of_settled)


def test_pictures_are_written(tmp_path) -> None:
    """PNG and GIF open, with a frame a depth."""
    from PIL import Image

    frames = [torch.rand(5, 5, 5).softmax(-1) for _ in range(9)]
    draw_settling(frames, list(range(1, 10)), [0.1] * 9, strip=tmp_path / "s.png", animation=tmp_path / "s.gif")
    with Image.open(tmp_path / "s.gif") as image:
        assert image.n_frames == 9
    points = [DepthPoint(depth=d, exact=0.5, settled=0.1, residual=0.1) for d in (1, 2, 4)]
    draw_curves({"5×5": points}, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.width > 300


def test_settling_follows_one_grid() -> None:
    """One frame and one residual a depth."""
    frames, residuals = settling(Countdown(right=[3], rest=[4]), torch.zeros(1, 1, dtype=torch.long), (1, 2, 3, 4))
    assert [int(f.argmax()) for f in frames] == [0, 0, 1, 1]
    assert residuals[-1] < 1e-6 < residuals[0]
