"""The cost of a recipe: the estimated memory of a training step is close to the measured peak."""

import math
from dataclasses import asdict, replace

import pytest
import torch

from attractor import recipes
from attractor.config import override
from attractor.errors import ConfigError
from attractor.experiment.cost import CostEstimate, cost, estimate_cost
from attractor.experiment.cost.estimate import MeasuredCost, _memory_rows, _time_rows
from attractor.experiment.cost.memory import estimate_memory
from attractor.experiment.cost.step_benchmark import StepBenchmark
from attractor.experiment.device import peak_memory

SMALL = ("model.vocab_size=512", "text.batch_size=2", "text.length=128")
RUNS = [
    ("language/tiny", SMALL),
    *(("language/tiny", (*SMALL, f"model.gradient={g}")) for g in ("neumann", "phantom", "unrolled", "implicit")),
    ("language/tiny-transformer", SMALL),
    ("language/tiny-looped", (*SMALL, "train.precision=fp32")),
    ("language/tiny-deq", (*SMALL, "model.qk_norm=false", "model.hidden_act=relu2")),
    ("language/tiny", (*SMALL, "train.freeze=backbone")),
    ("maze", ("supervision.batch_size=16",)),
    ("maze/walls", ("supervision.batch_size=4",)),
    ("sudoku/6x6", ("supervision.batch_size=16",)),
    ("sudoku/6x6", ("supervision.batch_size=16", "model.update.network.mixing=attention", "model.solver=anderson")),
    ("sudoku/6x6", ("supervision.batch_size=16", "model.update.network.mixing=convolution", "model.backprop_steps=2")),
    ("sudoku/6x6-symmetric", ()),
    ("sudoku/6x6-trm", ("supervision.batch_size=16", "train.precision=fp32")),
    ("sudoku/6x6-hrm", ("supervision.batch_size=16", "train.ema_decay=0")),
    ("sudoku/6x6-transformer", ("supervision.batch_size=16",)),
]


@pytest.mark.filterwarnings("ignore:Implicit gradient")
@pytest.mark.parametrize(("name", "changes"), RUNS)
def test_the_estimate_is_near_the_measured_peak(name: str, changes: tuple[str, ...], monkeypatch) -> None:
    """Within 15 %, with weights and optimizer, in real training steps; every family, gradient and kind of mixing."""
    monkeypatch.setattr("attractor.experiment.cost.step_benchmark.peak_flops", lambda device, dtype: 1e12)
    monkeypatch.setattr(StepBenchmark, "time_step", lambda self: (1.0, 1.0))  # two steps of the four are for memory
    estimate = cost(override(recipes.get(name), changes), evaluations=6, measure=True)
    assert estimate.measured is not None, estimate.not_measured
    assert estimate.measured.estimate == pytest.approx(estimate.measured.peak, rel=0.15)


def test_the_table_shows_every_part_of_the_peak() -> None:
    """Also gradients that exist early; where the clues decide how much is computed, there is no MFU."""
    estimate = estimated("language/140m", "train.accumulate=4")
    assert estimate.memory.early_gradients > 0
    assert estimate.memory.step_buffer > 0
    assert {f"{size / 1e6:,.1f}" for size in asdict(estimate.memory).values() if size} <= {
        size for _, size in _memory_rows(estimate.memory, "token")
    }
    symmetric = replace(
        estimated("sudoku/hardest"),
        measured=MeasuredCost(batch_size=24, peak=1.0, estimate=1.0, rate=100.0, mfu=math.nan),
    )
    assert ["this machine, measured", "100", "–", "–"] in [list(row) for row in _time_rows(symmetric)]


def estimated(name: str = "language/140m", *changes: str, **settings) -> CostEstimate:
    return estimate_cost(override(recipes.get(name), changes), evaluations=8, **settings)


def test_one_step_gradients_need_the_same_memory_for_any_number_of_evaluations() -> None:
    """One-step gradients differentiate one evaluation, unrolled ones all of them."""
    sizes = {
        gradient: [
            estimate_cost(
                override(recipes.get("language/140m"), [f"model.gradient={gradient}"]), evaluations=n
            ).memory.evaluation_activations
            for n in (8, 32)
        ]
        for gradient in ("one-step", "unrolled")
    }
    assert sizes["one-step"][0] == sizes["one-step"][1]
    assert sizes["unrolled"][1] == 4 * sizes["unrolled"][0]


def test_processes_share_the_batch_and_fsdp_also_the_weights() -> None:
    """With fsdp, weights and optimizer state are sharded, and the weights of some layers are gathered."""
    alone = estimated().memory
    shared = {strategy: estimated(world_size=8, strategy=strategy).memory for strategy in ("ddp", "fsdp")}
    assert all(m.backbone_activations == alone.backbone_activations / 8 for m in shared.values())
    assert shared["ddp"].weights == alone.weights
    assert shared["fsdp"].weights == alone.weights / 8
    assert shared["fsdp"].optimizer == alone.optimizer / 8
    assert 0 < shared["fsdp"].gathered_weights < alone.weights
    single = estimated("language/140m", "train.accumulate=1", world_size=8, strategy="fsdp").memory
    assert single.gradients == alone.gradients / 8 < shared["fsdp"].gradients  # accumulated gradients are not sharded


def test_optimizer_state_and_averaged_weights_are_counted() -> None:
    """Two moments for AdamW, one for Muon, and averaged weights when the recipe has them."""
    puzzles = estimated("sudoku/6x6")
    num = sum(p.numel() for p in puzzles.model.parameters())
    assert puzzles.memory.optimizer == 2 * 4 * num
    assert puzzles.memory.ema_weights == 4 * num
    language = estimated()
    matrices = sum(p.numel() for n, p in language.model.named_parameters() if "_proj" in n)
    num = sum(p.numel() for p in language.model.parameters())
    assert language.memory.optimizer == 4 * (2 * (num - matrices) + matrices)
    assert language.memory.ema_weights == 0


def test_invalid_numbers_of_processes_are_refused() -> None:
    """A batch that cannot be divided, an unknown strategy, a strategy for one process."""
    with pytest.raises(ConfigError, match="divided among 3"):
        estimated(world_size=3, strategy="ddp")
    with pytest.raises(ConfigError, match="fsdp"):
        estimate_memory(estimated().model, replace(estimated().setup, strategy="fdsp"))
    with pytest.raises(ConfigError, match="several processes"):
        cost("language/140m", strategy="fsdp")


def test_a_recipe_is_given_by_name_or_as_a_dataclass() -> None:
    """Both give the same estimate, and nothing is measured unless requested."""
    by_name, by_value = cost("language/140m"), cost(recipes.get("language/140m"))
    assert by_name.to_dict() == by_value.to_dict()
    assert by_name.measured is None
    assert "Not measured: not requested." in str(by_name)


def test_peak_memory_counts_tensors_that_are_alive() -> None:
    """It counts neither views, nor tensors from before, nor freed tensors."""
    before = torch.zeros(1000)

    def work() -> None:
        for _ in range(3):
            kept = before * 2  # 4,000 bytes
            other = kept + 1  # and 4,000 more
            kept.view(10, 100)[0].add_(1)
            before.add_(1)
            del other

    assert peak_memory(work, torch.device("cpu")) == pytest.approx(12_000, abs=4_000)
