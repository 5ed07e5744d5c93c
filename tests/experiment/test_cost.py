"""The memory of a training step, reckoned without making one, is near what a real one keeps at its peak."""

from dataclasses import replace

import pytest
import torch

from attractor import recipes
from attractor.config import override
from attractor.errors import ConfigError
from attractor.experiment.cost.device import peak_memory
from attractor.experiment.cost.estimate import CostEstimate, MeasuredCost, estimate_cost, measure_cost
from attractor.experiment.cost.memory import memory

SMALL = ("model.vocab_size=512", "text.batch_size=2", "text.length=128")
RUNS = [
    ("language/tiny", SMALL),
    *(("language/tiny", (*SMALL, f"model.gradient={g}")) for g in ("neumann", "phantom", "unrolled", "implicit")),
    ("language/tiny-transformer", SMALL),
    ("language/tiny-looped", (*SMALL, "train.precision=fp32")),
    ("language/tiny-deq", (*SMALL, "model.qk_norm=false", "model.hidden_act=relu2")),
    ("maze", ("supervision.batch_size=16",)),
    ("sudoku/6x6", ("supervision.batch_size=16",)),
    ("sudoku/6x6", ("supervision.batch_size=16", "model.update.network.mixing=attention", "model.solver=anderson")),
    ("sudoku/6x6", ("supervision.batch_size=16", "model.update.network.mixing=convolution", "model.backprop_steps=2")),
    ("sudoku/6x6-trm", ("supervision.batch_size=16", "train.precision=fp32")),
    ("sudoku/6x6-hrm", ("supervision.batch_size=16", "train.ema_decay=0")),
    ("sudoku/6x6-transformer", ("supervision.batch_size=16",)),
]


@pytest.mark.filterwarnings("ignore:Implicit gradient")
@pytest.mark.parametrize(("name", "changes"), RUNS)
def test_the_estimate_is_near_the_measured_peak(name: str, changes: tuple[str, ...], monkeypatch) -> None:
    """Within 15 %, weights and optimiser included, in steps like the loop's; every family, gradient and mixing."""
    monkeypatch.setattr("attractor.experiment.cost.estimate.peak_flops", lambda device, dtype: 1e12)
    real = measure_cost(estimate_cost(override(recipes.get(name), changes), evaluations=6))
    assert isinstance(real, MeasuredCost), real
    assert real.estimate == pytest.approx(real.peak, rel=0.15)


def found(name: str = "language/140m", *changes: str, **settings) -> CostEstimate:
    return estimate_cost(override(recipes.get(name), changes), evaluations=8, **settings)


def test_evaluations_cost_no_memory_beyond_the_solver_s_window() -> None:
    """One-step gradients keep one evaluation, whatever the number; unrolled ones keep all of them."""
    sizes = {
        gradient: [
            estimate_cost(
                override(recipes.get("language/140m"), [f"model.gradient={gradient}"]), evaluations=n
            ).memory.tracked
            for n in (8, 32)
        ]
        for gradient in ("one-step", "unrolled")
    }
    assert sizes["one-step"][0] == sizes["one-step"][1]
    assert sizes["unrolled"][1] == 4 * sizes["unrolled"][0]


def test_what_is_divided_among_processes() -> None:
    """Both ways the batch; with fsdp also weights and optimiser, while the weights of some layers are gathered."""
    alone = found().memory
    both = {how: found(world_size=8, strategy=how).memory for how in ("ddp", "fsdp")}
    assert all(m.backbone == alone.backbone / 8 for m in both.values())
    assert both["ddp"].weights == alone.weights
    assert both["fsdp"].weights == alone.weights / 8
    assert both["fsdp"].optimizer == alone.optimizer / 8
    assert 0 < both["fsdp"].gathered < alone.weights
    once = found("language/140m", "train.accumulate=1", world_size=8, strategy="fsdp").memory
    assert once.gradients == alone.gradients / 8 < both["fsdp"].gradients  # accumulated gradients wait undivided


def test_optimiser_and_averages_are_counted_as_they_are_built() -> None:
    """Two moments for AdamW, one for Muon, and averaged weights where there are any."""
    reckoning = found("sudoku/6x6")
    num = sum(p.numel() for p in reckoning.model.parameters())
    assert reckoning.memory.optimizer == 2 * 4 * num
    assert reckoning.memory.averaged == 4 * num
    language = found().model
    matrices = sum(p.numel() for n, p in language.named_parameters() if "_proj" in n)
    num = sum(p.numel() for p in language.parameters())
    assert found().memory.optimizer == 4 * (2 * (num - matrices) + matrices)
    assert found().memory.averaged == 0


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="divided among 3"):
        found(world_size=3, strategy="ddp")
    with pytest.raises(ConfigError, match="fsdp"):
        memory(found().model, replace(found().run, strategy="fdsp"))


def test_the_ledger_counts_what_is_held() -> None:
    """Neither views, nor what was there before, nor what is gone."""
    before = torch.zeros(1000)

    def work() -> None:
        for _ in range(3):
            kept = before * 2  # 4,000 bytes
            other = kept + 1  # and 4,000 more
            kept.view(10, 100)[0].add_(1)
            before.add_(1)
            del other

    assert peak_memory(work, torch.device("cpu")) == pytest.approx(12_000, abs=4_000)
