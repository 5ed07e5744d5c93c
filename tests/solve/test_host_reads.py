"""On an accelerator, the host reads from the device at convergence checks only, and tensors stay on their device.

Both are tested without one: a dispatch mode notes every operator that makes the host wait, while tensors say that they
are not on the CPU; and meta tensors refuse other devices, and have no values to read.
"""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

import attractor
from attractor import (
    Anderson,
    BestSoFar,
    Broyden,
    Implicit,
    Neumann,
    Newton,
    NewtonKrylov,
    OneStep,
    Phantom,
    Picard,
    Steps,
    Tolerance,
    Unrolled,
    fixed_point,
    recipes,
    root,
)
from attractor.config import change
from attractor.experiment.language import train_language
from attractor.experiment.puzzles import train_reasoner
from attractor.models.language import AttractorConfig, AttractorForCausalLM
from attractor.models.reasoning import AttractorReasonerConfig
from attractor.recipes import MazeDataConfig, PuzzleRecipe
from attractor.solve import loop
from attractor.training import TrainConfig

ROOT = str(Path(attractor.__file__).parent)
aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_consecutive.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class HostReads(TorchDispatchMode):
    """The functions of the package in which the host waits for a device, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func in INDEXING and any(x is not None and x.dtype == torch.bool for x in args[1])
        to_host = func is aten._to_copy.default and str((kwargs or {}).get("device")) == "cpu" and args[0].is_meta
        if func in READS or by_mask or to_host:
            self.note()
        return func(*args, **(kwargs or {}))

    def note(self) -> None:
        ours = [frame for frame in traceback.extract_stack() if frame.filename.startswith(ROOT)]
        self.functions.append(ours[-1].name)


@pytest.fixture
def accelerator(monkeypatch) -> None:
    """Tensors on the CPU say that they are on another device, and copies to the host are noted."""
    monkeypatch.setattr(Tensor, "is_cpu", False)
    for name in ("tolist", "cpu"):  # on a CPU these are no operators
        monkeypatch.setattr(Tensor, name, _noted(getattr(Tensor, name)))


def _noted(method):
    def noted(self, *args, **kwargs):
        mode = _get_current_dispatch_mode()
        if isinstance(mode, HostReads):
            mode.note()
        return method(self, *args, **kwargs)

    return noted


X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
W = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)) / 8
SOLVERS = [Picard(), Anderson(), Broyden(), BestSoFar(Anderson())]
UNCHECKED = Tolerance(rtol=1e-30, max_evaluations=8, check_every=100)
CHECKS = {"is_unchanged", "is_done", "count"}
# Once, at the end of a solve to a tolerance: whether equations stagnated because the update is random.
AT_THE_END = {"_warn_if_random"}


def gradients(stop) -> list:
    return [OneStep(), Neumann(2), Phantom(), Implicit(stop=stop), Implicit(stop=stop, order=2), Unrolled()]


def solve_and_differentiate(device: str, solver, stop, gradient, causal: bool, nested: bool = False) -> None:
    x, w = X.to(device), W.clone().to(device).requires_grad_()
    if nested:
        update = lambda s: (x + torch.tanh(s[1] @ w), 0.5 * s[0])  # noqa: E731
        value = fixed_point(
            update, (torch.zeros_like(x), x), solver=solver, stop=stop, gradient=gradient, causal=causal
        ).value[0]
    else:
        value = fixed_point(
            lambda y: x + torch.tanh(y @ w), x, solver=solver, stop=stop, gradient=gradient, causal=causal
        ).value
    value.sum().backward()


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("causal", [False, True])
def test_solves_and_gradients_read_nothing_between_checks(solver, causal: bool) -> None:
    """With every gradient; under Steps they read nothing at all."""
    for stop, allowed in ((Steps(4), set()), (UNCHECKED, AT_THE_END)):
        for gradient in gradients(stop):
            with HostReads() as reads:
                solve_and_differentiate("cpu", solver, stop, gradient, causal, nested=isinstance(gradient, Implicit))
            assert set(reads.functions) <= allowed, (stop, gradient)
    with HostReads() as reads:
        solve_and_differentiate("cpu", solver, Tolerance(rtol=1e-30, max_evaluations=8), OneStep(), causal)
    checks = [name for name in reads.functions if name not in AT_THE_END]
    assert set(checks) <= CHECKS
    assert len(checks) <= 8  # one for each evaluation


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_solves_and_gradients_stay_on_their_device(solver, monkeypatch) -> None:
    monkeypatch.setattr(loop, "_warn_if_random", lambda *args: None)  # reads a value
    for stop in (Steps(4), UNCHECKED):
        for gradient in gradients(stop):
            solve_and_differentiate("meta", solver, stop, gradient, True, nested=isinstance(gradient, Neumann))


def test_roots_stay_on_their_device(monkeypatch) -> None:
    monkeypatch.setattr(loop, "_warn_if_random", lambda *args: None)
    x = X[0].to("meta").requires_grad_()
    for options in ({"solver": Newton()}, {"solver": Broyden(), "gradient": OneStep()}):
        root(lambda y: y + 0.1 * y**3 - x, torch.zeros_like(x), stop=Steps(3), **options).value.sum().backward()
    with torch.no_grad(), pytest.raises(RuntimeError, match="meta"):  # GMRES looks at its residuals
        root(lambda y: y + 0.1 * y**3 - x, torch.zeros_like(x), solver=NewtonKrylov(), stop=Steps(3))


SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


def language_model(device: str) -> AttractorForCausalLM:
    torch.manual_seed(0)
    model = AttractorForCausalLM(AttractorConfig(**SIZES))
    for weight in model.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=0.1)
    return model.to(device)


def train_language_model(device: str, **budget) -> None:
    ids = torch.ones(2, 12, dtype=torch.long, device=device)
    language_model(device).train()(ids, labels=ids, **budget).loss.backward()


def evaluate_language_model(device: str, **budget) -> None:
    ids = torch.ones(2, 12, dtype=torch.long, device=device)
    model = language_model(device).eval()
    with torch.no_grad():
        output = model(ids, use_cache=device == "cpu", **budget)  # PyTorch's autocast does not know meta tensors
        if device == "cpu":
            model(ids[:, :1], past_key_values=output.past_key_values, use_cache=True, **budget)


def reason(device: str, train: bool) -> None:
    model = AttractorReasonerConfig(random_init=False, noise=0.0).build().to(device).train(train)
    questions = torch.ones(2, 5, 5, dtype=torch.long, device=device)
    with torch.set_grad_enabled(train):
        logits = model(questions, depth=None if train else 3).logits
    if train:
        logits.square().mean().backward()


MODELS = {
    "language model, training": lambda device: train_language_model(device, depth=3),
    "language model, cached tokens": lambda device: evaluate_language_model(device, depth=3),
    "reasoner, training": lambda device: reason(device, True),
    "reasoner": lambda device: reason(device, False),
}


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("name", MODELS)
def test_models_of_fixed_depth_read_nothing(name: str) -> None:
    with HostReads() as reads:
        MODELS[name]("cpu")
    assert not reads.functions


@pytest.mark.parametrize("name", MODELS)
def test_models_stay_on_their_device(name: str) -> None:
    MODELS[name]("meta")


@pytest.mark.usefixtures("accelerator")
def test_language_models_read_nothing_between_checks() -> None:
    """Where converged tokens are left out, their number is read right after a check; once more when the cache is full."""
    partial = {"at", "__init__", "finish"}
    budget = {"tolerance": 1e-3, "max_evaluations": 32}
    for call, allowed in ((train_language_model, set()), (evaluate_language_model, partial)):
        with HostReads() as reads:
            call("cpu", **budget)
        assert set(reads.functions) <= CHECKS | AT_THE_END | allowed
        assert CHECKS.intersection(reads.functions)


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("budget", [{"depth": 3}, {"tolerance": 1e-3, "max_evaluations": 8}], ids=str)
def test_generation_reads_little_for_each_token(budget) -> None:
    """transformers reads whether all rows have ended, and the model whether positions count up; nothing else at a depth."""
    prompt, num_tokens = torch.ones(2, 5, dtype=torch.long), 6
    with HostReads() as reads:
        language_model("cpu").generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=num_tokens, pad_token_id=0, **budget
        )
    allowed = {"generate", "_padding", "_positions"}
    counted = Counter(reads.functions)
    assert set(counted) <= (allowed if "depth" in budget else allowed | CHECKS | {"finish"}), counted
    assert counted["generate"] <= 2 * num_tokens
    assert counted["_padding"] + counted["_positions"] <= 2 * num_tokens


class Ended(Exception):
    pass


@pytest.mark.usefixtures("accelerator")
def test_a_training_step_reads_the_loss_and_which_puzzles_are_finished(tmp_path) -> None:
    """Once each. All other reads are of numbers on the host: seeds of generators, and the optimisers' step counts."""
    recipe = PuzzleRecipe(
        model=AttractorReasonerConfig(evaluations_per_segment=4, backprop_steps=2),
        data=MazeDataConfig(num_puzzles=20, size=7),
        train=TrainConfig(num_steps=40, log_every=4, checkpoint_every=0),
    )
    on_host = {"_draw", "normal_noise", "optimizer_step", "update"}
    numbers: list[Counter[str]] = []

    def note(report) -> None:
        numbers.append(Counter(reads.functions))
        if len(numbers) == 3:  # the first interval has all that is done once
            raise Ended

    with HostReads() as reads, pytest.raises(Ended):
        train_reasoner(recipe, tmp_path / "run", callbacks=[note])
    between = numbers[2] - numbers[1]
    reports = {"_report", "evaluate", "<dictcomp>"}
    assert set(between) <= on_host | reports | {"_exchange", "_replace_finished"}, between
    assert between["_exchange"] == between["_replace_finished"] == 4


@pytest.mark.usefixtures("accelerator")
def test_a_language_training_step_reads_the_loss_and_whether_documents_are_packed(tmp_path) -> None:
    """Once each, beside convergence checks. The optimisers' step counts are on the host."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{i} and {i * i % 97}." for i in range(4000)))
    attractor.prepare_text([text], tmp_path / "tokens", vocab_size=300)
    recipe = change(
        recipes.get("language/tiny"),
        {
            "model": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2},
            "text": {"batch_size": 2, "length": 16},
            "train": {"num_steps": 40, "log_every": 4, "checkpoint_every": 0, "precision": "fp32"},
        },
    )
    numbers: list[Counter[str]] = []

    def note(report) -> None:
        numbers.append(Counter(reads.functions))
        if len(numbers) == 3:
            raise Ended

    with HostReads() as reads, pytest.raises(Ended):
        train_language(recipe, tmp_path / "tokens", tmp_path / "run", callbacks=[note])
    between = numbers[2] - numbers[1]
    in_report = {"<dictcomp>", "_mean_gate", "diagnostics"}
    allowed = CHECKS | AT_THE_END | in_report | {"_exchange", "_positions", "optimizer_step"}
    assert set(between) <= allowed, between
    assert between["_exchange"] == between["_positions"] == 4
    assert between["_warn_if_random"] <= 5  # each solve, and that of the report


@pytest.mark.usefixtures("accelerator")
def test_partial_updates_are_complete_between_checks() -> None:
    """How many equations are left is not known to the host there."""

    rate = torch.linspace(0.1, 0.9, 5)[:, None]  # a later token needs more evaluations

    class Counted(attractor.PartialUpdate):
        def __init__(self) -> None:
            self.complete, self.partial = 0, 0

        def __call__(self, y: Tensor) -> Tensor:
            self.complete += 1
            return rate * y + X

        def at(self, y: Tensor, index: Tensor) -> Tensor:
            self.partial += 1
            return rate[index % 5] * y + X.view(-1, 8)[index]

    values, counts = [], []
    for check_every in (1, 4):
        update = Counted()
        stop = Tolerance(rtol=1e-4, max_evaluations=200, check_every=check_every)
        with torch.no_grad(), HostReads() as reads:
            values.append(fixed_point(update, X, solver=Picard(), stop=stop, causal=True).value)
        counts.append((update.partial, reads.functions.count("at")))
    assert torch.allclose(*values, rtol=1e-2)
    assert counts[0][0] > counts[1][0]
    assert counts[1][1] <= 2 * (counts[1][0] + 1)
