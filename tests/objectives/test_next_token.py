"""The objective of language models: which rows it reads, its metrics, and accumulated batches."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attractor.errors import ConfigError
from attractor.models.language import AttractorConfig, AttractorForCausalLM
from attractor.models.language.loss import TokenDivergence, teacher_divergence
from attractor.objectives import NextToken, NextTokenConfig
from attractor.objectives.next_token import growth
from attractor.optim import OptimizerConfig
from attractor.training import TrainConfig, train


class Drawn:
    """Random rows of tokens: row ``n`` has seed ``n``."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def batch(self, first: int, num: int) -> tuple[Tensor, Tensor]:
        self.read += range(first, first + num)
        rows = [torch.randint(50, (16,), generator=torch.Generator().manual_seed(n)) for n in range(first, first + num)]
        return torch.stack(rows), torch.arange(16).expand(num, 16)


def run(out: Path, batch_size: int, accumulate: int, **settings) -> tuple[AttractorForCausalLM, Drawn]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    model = AttractorForCausalLM(AttractorConfig(**sizes, num_hidden_layers=2, tolerance=1e-6))
    rows = Drawn()
    config = TrainConfig(
        num_steps=4,
        accumulate=accumulate,
        optimizer=OptimizerConfig(lr=1e-3, eps=1e-4),
        warmup_fraction=0,
        ema_decay=0,
        **settings,
    )
    objective = NextToken(rows, NextTokenConfig(batch_size=batch_size, length=16), peak_flops=1e9)
    return train(model, objective, config, out=out, metadata={}), rows


def test_accumulated_batches_equal_one_large_batch(tmp_path) -> None:
    """They read the same rows and give the same weights up to rounding."""
    large, rows = run(tmp_path / "a", 8, 1)
    accumulated, again = run(tmp_path / "b", 2, 4)
    assert rows.read == again.read == list(range(32))
    for a, b in zip(large.parameters(), accumulated.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_training_in_bf16_follows_float32(tmp_path) -> None:
    """Weights stay in float32, and the losses differ by less than 1%."""
    fp32, _ = run(tmp_path / "a", 8, 1)
    bf16, _ = run(tmp_path / "b", 8, 1, precision="bf16")
    assert {p.dtype for p in bf16.parameters()} == {torch.float32}
    ids = Drawn().batch(100, 8)[0]
    with torch.no_grad():
        losses = [float(m(ids, labels=ids).loss) for m in (fp32, bf16)]
    assert abs(losses[0] / losses[1] - 1) < 0.01
    assert losses[0] != losses[1], "nothing was computed in bf16"


def test_weight_decay_falls_linearly_to_its_final_value(tmp_path) -> None:
    """A weight whose gradient is zero shrinks by exactly this decay."""
    model = torch.nn.Linear(2, 2, bias=False)

    class ZeroLoss:
        def step(self, model, progress):
            return 0 * model.weight.sum(), {}

        def diagnostics(self, model):
            return {}

        def evaluate(self, model):
            return {}

        def state_dict(self):
            return {}

    before, rates = model.weight.detach().clone(), (1, 0.75, 0.5, 0.25)
    config = TrainConfig(
        num_steps=4,
        optimizer=OptimizerConfig(lr=0.1, weight_decay=1.0, final_weight_decay=0.0),
        warmup_fraction=0,
        cooldown_fraction=1e-9,
        ema_decay=0,
    )
    train(model, ZeroLoss(), config, out=tmp_path, metadata={})
    remaining = torch.tensor([1 - 0.1 * rate for rate in rates]).prod()
    assert torch.allclose(model.weight, before * remaining, rtol=1e-5)


def test_growth_of_a_linear_map_is_its_largest_eigenvalue() -> None:
    """A random perturbation turns to that direction. Gradients reach the map."""
    torch.manual_seed(0)
    scale = torch.tensor([0.2, 1.7, 0.1, 0.3], requires_grad=True)
    factor = growth(lambda y: 1 + scale * y, torch.randn(3, 5, 4), iterations=8)
    assert factor.shape == (3, 5)
    assert torch.allclose(factor, torch.tensor(1.7), rtol=1e-3)
    factor.mean().backward()
    assert torch.allclose(scale.grad, torch.tensor([0.0, 1, 0, 0]), atol=1e-3)


def test_a_contraction_penalty_lowers_growth(tmp_path) -> None:
    """Perturbations of the solution grow less after training with it than without, and growth is logged."""
    factors = []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        model = AttractorForCausalLM(AttractorConfig(**sizes, num_hidden_layers=2, max_evaluations=8))
        for name, p in model.named_parameters():
            if "layers.1" in name and p.ndim == 2:
                torch.nn.init.normal_(p, std=0.5)
        config = TrainConfig(
            num_steps=20, optimizer=OptimizerConfig(lr=1e-2), warmup_fraction=0, ema_decay=0, log_every=10
        )
        objective = NextToken(Drawn(), NextTokenConfig(batch_size=4, length=16, contraction_penalty=weight))
        train(model, objective, config, out=tmp_path / str(weight), metadata={})
        ids, positions = Drawn().batch(100, 4)
        with torch.no_grad():
            output = model(ids, position_ids=positions)
            factors.append(float(growth(model.update_of(output, positions), output.hidden).mean()))
        line = json.loads((tmp_path / str(weight) / "metrics.jsonl").read_text().splitlines()[-1])
        assert ("growth" in line) == (weight > 0)
    assert factors[1] < 0.7 * factors[0]


def test_unconverged_equations_are_counted(tmp_path) -> None:
    """With too few evaluations nearly all are unconverged, with enough none."""
    fractions = []
    for max_evaluations in (2, 64):
        torch.manual_seed(0)
        sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        config = AttractorConfig(
            **sizes,
            num_hidden_layers=2,
            tolerance=1e-5,
            max_evaluations=max_evaluations,
            gate_start=0.5,
            training_min_converged_fraction=1.0,
        )
        model = AttractorForCausalLM(config).train()
        for parameter in model.parameters():  # new layers are the identity, which converges at once
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.3)
        _, metrics = NextToken(Drawn(), NextTokenConfig(batch_size=4, length=16)).step(model)
        fractions.append(float(metrics["unconverged"]))
    assert fractions[0] > 0.9
    assert fractions[1] == 0


def test_no_step_has_two_checkpoints(tmp_path) -> None:
    """Neither a pause after a checkpoint nor resuming a finished run writes another one."""
    written: list[Path] = []
    model = AttractorForCausalLM(
        AttractorConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=2)
    )
    config = TrainConfig(num_steps=4, checkpoint_every=2, ema_decay=0)
    for resume, pauses in ((False, [False, True]), (True, [False] * 4), (True, [False] * 4)):
        answers = iter(pauses)
        objective = NextToken(Drawn(), NextTokenConfig(batch_size=2, length=16))
        train(
            model, objective, config, out=tmp_path, metadata={}, resume=resume, should_pause=lambda a=answers: next(a),
            save_model=lambda weights, folder: written.append(folder),
        )  # fmt: skip
    assert [folder.name for folder in written] == [".part-step-00000002", ".part-step-00000004"]


def test_the_divergence_is_that_of_the_distributions_over_the_vocabulary() -> None:
    """Of next tokens that labels count, in any chunks, with gradients; it is zero for equal models."""
    torch.manual_seed(0)
    hidden, teacher = torch.randn(2, 9, 8, requires_grad=True), torch.randn(2, 9, 8)
    head, other = (torch.nn.Linear(8, 30, bias=False) for _ in range(2))
    labels = torch.where(torch.rand(2, 9) < 0.4, -100, 1)
    p, q = (each.log_softmax(-1)[:, :-1] for each in (other(teacher), head(hidden)))
    expected = (p.exp() * (p - q)).sum(-1)[labels[:, 1:] != -100].mean()
    wanted = torch.autograd.grad(expected, (hidden, head.weight))
    for chunk in (4, 100):
        found = teacher_divergence(hidden, head, teacher, other, labels, TokenDivergence(), chunk=chunk)
        assert torch.allclose(found, expected)
        for a, b in zip(torch.autograd.grad(found, (hidden, head.weight)), wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    assert teacher_divergence(teacher, other, teacher, other, labels, TokenDivergence()) == 0


def test_distillation_brings_the_equilibrium_to_the_teacher_at_depth_1(tmp_path) -> None:
    """It is logged, and falls more than with the next-token loss alone. Without a teacher it is refused."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    found = {}
    for share in (0.0, 1.0):
        torch.manual_seed(0)
        model = AttractorForCausalLM(AttractorConfig(**sizes, num_hidden_layers=2, max_evaluations=8))
        for p in model.parameters():
            if p.ndim == 2:
                torch.nn.init.normal_(p, std=0.3)
        teacher = deepcopy(model).eval()
        config = TrainConfig(
            num_steps=60, optimizer=OptimizerConfig(lr=2e-3), warmup_fraction=0, ema_decay=0, log_every=10
        )
        text = NextTokenConfig(batch_size=4, length=16, distillation=share)
        train(model, NextToken(Drawn(), text, teacher=teacher), config, out=tmp_path / str(share), metadata={})
        ids, positions = Drawn().batch(100, 4)
        with torch.no_grad():
            inputs = {"input_ids": ids, "position_ids": positions}
            found[share] = [float(m.divergence(m(**inputs), teacher, ids, **inputs)) for m in (model, teacher)]
        line = json.loads((tmp_path / str(share) / "metrics.jsonl").read_text().splitlines()[-1])
        assert ("divergence" in line) == (share > 0)
        assert all(p.grad is None for p in teacher.parameters())
    assert found[1.0][0] < 0.5 * found[1.0][1] < found[0.0][0]
    with pytest.raises(ConfigError, match="needs a teacher"):
        NextToken(Drawn(), NextTokenConfig(distillation=0.5))
