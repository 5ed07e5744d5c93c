"""Evaluation by depth: numbers for a model with known behaviour, one trajectory for all depths, and figures."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_map

from attractor import Anderson, Picard
from attractor.data import maze
from attractor.data.puzzles import FIRST_DEV_SEED
from attractor.evaluation import DepthPoint, evaluate_depths, run_restarts, trajectory
from attractor.experiment import demo
from attractor.models.reasoning import AttractorReasonerConfig, Reasoner
from attractor.nn import GatedConvolutionUpdateConfig
from attractor.plots import plot_accuracy, plot_trajectory, render_digits
from attractor.plots import puzzles as plots


class Countdown:
    """A reasoner whose grid i is right from evaluation ``right[i]`` on, and has converged from ``converged[i]`` on."""

    random_init = True
    evaluations_per_segment = 2

    def __init__(self, right: list[int], converged: list[int], solver=Picard()) -> None:  # noqa: B008
        self.right, self.converged, self.solver = torch.tensor(right), torch.tensor(converged), solver
        self.evaluations = 0

    def check_restarts(self, breadth: int, noise: float | None = None) -> None:
        pass

    def init_state(self, questions):
        return torch.stack([questions[:, 0, 0], torch.zeros(len(questions), dtype=torch.long)], dim=1)

    def decode(self, state):
        index, count = state.unbind(1)
        answer = (count >= self.right[index]).long()
        return torch.nn.functional.one_hot(answer, 2).float()[:, None, None, :].expand(-1, 1, 1, -1), None

    def __call__(self, questions, state, *, stop, trace, noise=None):
        self.evaluations += len(questions) * stop.n
        points = torch.stack([state + torch.tensor([0, n]) for n in trace])
        residual = torch.where(points[..., 1] >= self.converged[points[..., 0]], 1e-9, 1.0)
        return SimpleNamespace(solution=SimpleNamespace(value=points[-1], trace=points, trace_residual=residual))


@pytest.mark.parametrize(("solver", "evaluations"), [(Picard(), 4 + 8 + 4 + 16), (Anderson(), 4 * 16)])
def test_figures_by_depth_are_those_of_a_known_model(solver, evaluations: int) -> None:
    """Shares by depth and at the end; a converged grid keeps its answer. Without memory it is not computed again."""
    model = Countdown(right=[2, 5, 100, 3], converged=[4, 8, 4, 1000], solver=solver)
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
    assert model.evaluations == evaluations
    assert sum(done) == 4


def test_accuracy_given_converged_is_nan_where_nothing_converged() -> None:
    """NaN, not a number that looks like a result."""
    found = evaluate_depths(
        Countdown(right=[1], converged=[99]), torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1), depths=(1, 2)
    )
    assert math.isnan(found.accuracy_given_converged)


@pytest.fixture(params=["picard", "anderson"])
def reasoner(request) -> Reasoner:
    torch.manual_seed(0)
    config = AttractorReasonerConfig(update=GatedConvolutionUpdateConfig(width=8), solver=request.param)
    return replace(config, random_init=False).build().eval()


def test_residuals_may_have_float64(reasoner: Reasoner) -> None:
    """Those of a float64 model have it, and on a GPU those of every model."""
    questions = torch.randint(0, 4, (3, 5, 5), generator=torch.Generator().manual_seed(0))
    model = reasoner.double()
    assert evaluate_depths(model, questions, questions, depths=(2, 4)).num_puzzles == 3
    assert run_restarts(model, questions, depths=(2, 4)).scores["residual"].dtype == torch.float32


def test_figures_do_not_depend_on_the_other_depths(reasoner: Reasoner) -> None:
    """One trajectory is read at every depth: figures at depth 8 are the same when 1, 2 and 4 are listed as well."""
    questions = torch.randint(0, 4, (6, 5, 5), generator=torch.Generator().manual_seed(0))
    answers = torch.randint(0, 5, (6, 5, 5), generator=torch.Generator().manual_seed(1))
    several, one = (
        evaluate_depths(reasoner, questions, answers, depths=d, tolerance=1e-12) for d in ((1, 2, 4, 8), (8,))
    )
    assert several.points[-1] == one.points[0]
    several, one = (run_restarts(reasoner, questions, depths=d) for d in ((1, 2, 4, 8), (8,)))
    assert torch.equal(several.answers[:, -1], one.answers[:, 0])
    assert torch.equal(several.residual[:, -1], one.residual[:, 0])
    several, one = (trajectory(reasoner, questions[0], d) for d in ((1, 2, 4, 8), (8,)))
    assert torch.equal(several[0][-1], one[0][0])
    assert several[1][-1] == one[1][0]
    solved = reasoner.solve(questions[:1], depth=8)
    assert torch.equal(solved.logits[0].softmax(dim=-1), one[0][0])
    assert float(solved.solution.residual[0]) == one[1][0]


def test_figures_have_legends_and_plain_numbers(tmp_path, monkeypatch) -> None:
    """The strip names the cells of a maze and says which frame has converged; depths are whole numbers."""
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, file: figures.append(figure))
    frames = [torch.rand(5, 5, 5).softmax(-1) for _ in range(3)]
    plot_trajectory(frames, [1, 2, 3], [0.5, 0.1, 1e-5], strip=tmp_path / "s.png", tolerance=1e-4)
    points = [DepthPoint(depth=d, exact=0.5, converged=0.1, residual=0.1**d) for d in (1, 2, 4, 8)]
    plot_accuracy({"5×5": points}, tmp_path / "c.png")
    strip, accuracy = figures
    assert [text.get_text() for text in strip.legends[0].get_texts()] == ["wall", "floor", "start", "goal", "path"]
    assert ["converged" in axes.get_title() for axes in strip.axes] == [False, False, True]
    many = [frames[0]] * 40  # of which frames are drawn that are evenly spaced in the logarithm of the depth
    plot_trajectory(many, [*range(1, 33), *range(40, 104, 8)], [8e6] + [0.1] * 39, strip=tmp_path / "s.png")
    titles = [axes.get_title().split("\n") for axes in figures.pop().axes]
    assert [title for title, _ in titles] == [f"depth {depth}" for depth in (1, 2, 6, 15, 40, 96)]
    assert [residual for _, residual in titles] == ["residual –", *["residual 1e-01"] * 5]
    labels = [label.get_text() for label in accuracy.axes[0].get_xticklabels()]
    assert {"1", "2", "4", "8"} <= set(labels)


def test_figures_are_written(tmp_path) -> None:
    """PNG and GIF open; the animation has one frame per depth."""
    from PIL import Image

    frames = [torch.rand(5, 5, 5).softmax(-1) for _ in range(9)]
    plot_trajectory(frames, list(range(1, 10)), [0.1] * 9, strip=tmp_path / "s.png", animation=tmp_path / "s.gif")
    with Image.open(tmp_path / "s.gif") as image:
        assert image.n_frames == 9
    points = [DepthPoint(depth=d, exact=0.5, converged=0.1, residual=0.1) for d in (1, 2, 4)]
    plot_accuracy({"5×5": points}, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.width > 300


def test_a_trajectory_has_one_frame_and_one_residual_per_depth() -> None:
    """The answer changes, and the residual falls, at the depths of the known model."""
    model = Countdown(right=[3], converged=[4])
    frames, residuals = trajectory(model, torch.zeros(1, 1, dtype=torch.long), (1, 2, 3, 4))
    assert [int(f.argmax()) for f in frames] == [0, 0, 1, 1]
    assert residuals[-1] < 1e-6 < residuals[0]


@pytest.mark.parametrize("solver", [Picard(), Anderson()])
def test_a_trajectory_ends_when_it_has_converged(solver) -> None:
    """The first frame below the tolerance is the last; a trajectory from a converged state has one frame."""
    question, model = torch.zeros(1, 1, dtype=torch.long), Countdown(right=[3], converged=[4], solver=solver)
    assert len(trajectory(model, question, range(1, 9), tolerance=1e-4)[0]) == 4
    converged = torch.tensor([[0, 50]])
    assert len(trajectory(model, question, range(1, 9), init_state=converged, tolerance=1e-4)[0]) == 1


class Far(torch.Tensor):
    """A tensor of another device (named meta) that raises when combined with CPU tensors, as a GPU's tensors do."""

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
        if name in ("index", "index_put_"):  # indices may be on the CPU
            tensors = [first, *args[2:3]]
        elif name in ("copy_", "_to_copy"):
            tensors = []
        kinds = {isinstance(x, Far) for x in tensors if x.ndim}
        assert len(kinds) < 2, f"{name}: tensors of two devices"
        goes = str(kwargs.pop("device", None) or "meta")
        found = func(*tree_map(cls._near, args), **tree_map(cls._near, kwargs))
        if goes == "cpu" or name == "_local_scalar_dense" or not isinstance(first, Far | list | tuple):
            return found
        return tree_map(lambda x: Far(x) if isinstance(x, torch.Tensor) else x, found)

    @staticmethod
    def _near(x):
        return x.near if isinstance(x, Far) else x


class CountdownOnDevice(Countdown):
    """The same model on the other device."""

    def init_state(self, questions):
        assert isinstance(questions, Far)
        return Far(super().init_state(questions.near))

    def decode(self, state):
        assert isinstance(state, Far)
        return Far(super().decode(state.near)[0]), None

    def __call__(self, questions, state, *, stop, trace, noise=None):
        assert isinstance(questions, Far)
        assert isinstance(state, Far)
        solution = super().__call__(questions.near, state.near, stop=stop, trace=trace).solution
        return SimpleNamespace(solution=SimpleNamespace(**{name: Far(t) for name, t in vars(solution).items()}))


def test_evaluation_keeps_results_on_the_cpu() -> None:
    """Figures and frames are CPU tensors and equal those of the CPU, on any device of model and questions."""
    questions, answers = torch.arange(4)[:, None, None], torch.ones(4, 1, 1)
    right, converged = [2, 5, 100, 3], [4, 8, 4, 1000]
    on_cpu = evaluate_depths(Countdown(right, converged), questions, answers, depths=(2, 4, 8), batch_size=3)
    for solver in (Picard(), Anderson()):
        model = CountdownOnDevice(right, converged, solver)
        for truth in (answers, Far(answers)):
            assert evaluate_depths(model, Far(questions), truth, depths=(2, 4, 8), batch_size=3) == on_cpu
        frames, residuals = trajectory(model, Far(questions[0]), (1, 2, 3, 4))
        assert not any(isinstance(frame, Far) for frame in frames)
        assert [int(f.argmax()) for f in frames] == [0, 1, 1, 1]
        assert residuals[-1] < 1e-6
        restarts = run_restarts(model, Far(questions), depths=(2, 4), breadth=2)
        assert not isinstance(restarts.answers, Far)


def test_the_demo_uses_the_models_device(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Questions are moved to the model's device. A maze whose solve converges to a right answer is drawn."""
    model, seen = AttractorReasonerConfig().build().to("meta"), []

    def spy(model, questions, *args, **settings):
        seen.append(questions.device)
        return ([], []) if questions.ndim == 2 else "figures"

    monkeypatch.setattr(demo, "SIZES", {7: 2})
    monkeypatch.setattr(demo, "evaluate_depths", spy)
    monkeypatch.setattr(demo, "trajectory", spy)
    monkeypatch.setattr(demo, "plot_trajectory", lambda *frames, **files: None)
    monkeypatch.setattr(demo, "plot_accuracy", lambda *curves: None)

    def solve(questions, **budget):
        """Only the fourth maze converges to a right answer; the second converges to a wrong one."""
        seen.append(questions.device)
        answers = maze.shortest_paths(maze.generate(8, 7, seed=FIRST_DEV_SEED, corners=True).questions)
        answers[1] = 0
        logits = torch.nn.functional.one_hot(torch.from_numpy(answers).long(), 5).float()
        residual = torch.tensor([1, 1e-5, 1, 1e-5, 1, 1, 1e-5, 1])
        return SimpleNamespace(logits=logits, solution=SimpleNamespace(residual=residual), init_state=torch.zeros(8, 1))

    monkeypatch.setattr(model, "solve", solve)
    demo.evaluate_sizes(model)
    demo.draw(model, {}, tmp_path)
    assert [device.type for device in seen] == ["meta", "meta", "meta"]
    drawn = maze.generate(8, 7, seed=FIRST_DEV_SEED, corners=True).questions[3]
    assert (tmp_path / "maze.txt").read_text().rstrip("\n") == maze.render(drawn)


def test_the_demo_trains_with_one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """On a busy machine several threads wait for each other. The caller keeps its own number, also after an error."""
    before, used = torch.get_num_threads(), []

    def train(*_: object, **__: object) -> None:
        used.append(torch.get_num_threads())
        raise MemoryError

    monkeypatch.setattr(demo, "train_reasoner", train)
    try:
        torch.set_num_threads(3)
        with pytest.raises(MemoryError):
            demo.demo(tmp_path / "demo", progress=False)
        assert (used, torch.get_num_threads()) == ([1], 3)
    finally:
        torch.set_num_threads(before)


def test_a_changed_given_is_drawn_on_red() -> None:
    """Kept givens are black; a cell is red where another digit or a blank replaces a given, and only there."""
    question = torch.tensor([[1, 2, 3, 4], [0] * 4, [0] * 4, [0] * 4])
    answer = torch.tensor([[1, 3, 0, 4], [1] * 4, [1] * 4, [1] * 4])
    image = render_digits(question, (2, 2))(torch.nn.functional.one_hot(answer, 5).float(), 40)
    inner = [image[4:36, 40 * column + 4 : 40 * column + 36] for column in range(4)]
    red = [bool(((cell[..., 0] > 200) & (cell[..., 1] < 60)).any()) for cell in inner]
    black = [bool((cell.max(axis=-1) < 60).any()) for cell in inner]
    assert red == [False, True, True, False]
    assert black == [True, False, False, True]
