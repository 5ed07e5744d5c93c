"""Many processes train as one would: over gloo, with replicated and with divided weights."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from attractor.errors import ConfigError
from attractor.experiment.puzzles import train_reasoner
from attractor.models.language import (
    AttractorConfig,
    AttractorForCausalLM,
    LanguageModel,
    LoopedConfig,
    LoopedForCausalLM,
)
from attractor.models.reasoning import AttractorReasonerConfig, TransformerConfig, TRMConfig
from attractor.nn import GridNetworkConfig, TRMUpdateConfig
from attractor.objectives import DeepSupervisionConfig, NextToken, NextTokenConfig
from attractor.optim import OptimizerConfig
from attractor.recipes import sudoku
from attractor.recipes.puzzles import ReasonerModelConfig
from attractor.solve import synchronized
from attractor.training import DistributedContext, TrainConfig, find_checkpoint, train
from attractor.training.checkpoint import load_own
from attractor.training.parallel import STRATEGIES, apply_ddp, apply_fsdp, clip, gradient_sync

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 3,
    "max_position_embeddings": 12, "tolerance": 1e-4, "initializer_range": 0.3,
}  # fmt: skip
SOLVED = {"num_attractor_layers": 1, "gate_start": 0.5}
MODELS: dict[str, Callable[[], LanguageModel]] = {
    "one-step": lambda: AttractorForCausalLM(AttractorConfig(**SIZES, **SOLVED)),
    "phantom": lambda: AttractorForCausalLM(AttractorConfig(**SIZES, **SOLVED, gradient="phantom")),
    "neumann": lambda: AttractorForCausalLM(AttractorConfig(**SIZES, **SOLVED, gradient="neumann")),
    "implicit": lambda: AttractorForCausalLM(AttractorConfig(**SIZES, **SOLVED, gradient="implicit")),
    "transformer": lambda: AttractorForCausalLM(AttractorConfig(**SIZES, num_attractor_layers=0)),
    "looped": lambda: LoopedForCausalLM(
        LoopedConfig(**SIZES, num_core_layers=1, mean_recurrence=3, tracked_recurrence=2)
    ),
}


CELLS = GridNetworkConfig(width=16, hidden=24, cell_hidden=16, num_cells=36)
RECURSION = TRMUpdateConfig(network=CELLS, num_latent=1)
REASONERS: dict[str, ReasonerModelConfig] = {
    "attractor": AttractorReasonerConfig(update=RECURSION, evaluations_per_segment=2, backprop_steps=1, random_init=False, noise=0),
    "trm": TRMConfig(update=RECURSION, evaluations_per_segment=2),
    "reads-once": TransformerConfig(network=CELLS),
}


class Drawn:
    """Row ``n`` is drawn with seed ``n``."""

    def batch(self, first: int, num: int) -> tuple[Tensor, Tensor]:
        rows = [torch.randint(40, (12,), generator=torch.Generator().manual_seed(n)) for n in range(first, first + num)]
        return torch.stack(rows), torch.arange(12).expand(num, 12)


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def build(name: str) -> LanguageModel:
    torch.manual_seed(0)
    model = MODELS[name]().train()
    for parameter in model.parameters():  # closing projections begin at zero, where nothing moves
        if parameter.ndim == 2 and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return model


def gradients(name: str, distributed: DistributedContext, strategy: str) -> tuple[float, int, dict[str, Tensor]]:
    """Return loss, calls and gradients of eight rows in two parts of a step."""
    model = build(name)
    forward: nn.Module = model
    if distributed.size > 1 and strategy == "fsdp":
        apply_fsdp(model, model.fsdp_units(), distributed, torch.float32)
    elif distributed.size > 1:
        forward = apply_ddp(model, distributed, torch.float32)
    first, num = distributed.share(4)
    losses, calls = [], 0
    for part in range(2):
        tokens, positions = Drawn().batch(4 * part + first, num)
        torch.manual_seed(part)  # the looped model draws its iterations
        with gradient_sync(forward, now=part == 1):
            with synchronized(distributed.total):
                output = forward(input_ids=tokens, position_ids=positions, labels=tokens)
            (output.loss / 2).backward()
        losses.append(output.loss.item())
        calls = output.solution.outcome.calls if output.solution is not None else 0
    norm = clip(model, 1e9)
    found = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    found["norm"] = norm
    return sum(distributed.mean(losses)) / 2, calls, found


class Poisoned(NextToken):
    """At its second step the loss of one rank is not a number, and all its gradients with it."""

    rank = 0

    def step(self, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().step(model)
        return (loss * torch.nan if self._row == 8 and self.rank == 1 else loss), metrics


def run(
    out: Path,
    distributed: DistributedContext,
    strategy: str,
    *,
    num_steps: int = 6,
    objective: type = NextToken,
    gradient: str = "one-step",
    **more: Any,
) -> nn.Module:
    """Train four rows a step."""
    config = TrainConfig(
        num_steps=num_steps, optimizer=OptimizerConfig(lr=1e-2, muon_pattern=r"_proj\.weight$"), warmup_fraction=0, ema_decay=0.9,
        parallel=strategy, log_every=1, checkpoint_every=3, cooldown_fraction=0,
    )  # fmt: skip
    rows = objective(
        Drawn(), NextTokenConfig(batch_size=4, length=12), rank=distributed.rank, world_size=distributed.size
    )
    rows.rank = distributed.rank
    model = build(gradient)
    return train(model, rows, config, out=out, metadata={}, units=model.fsdp_units(), distributed=distributed, **more)


def puzzles(out: Path, distributed: DistributedContext, strategy: str, model: ReasonerModelConfig) -> None:
    """Train a reasoner for three steps."""
    recipe = sudoku(6)
    recipe = replace(
        recipe,
        model=model,
        data=replace(recipe.data, num_puzzles=8),
        supervision=DeepSupervisionConfig(batch_size=8, max_segments=2),
        train=TrainConfig(num_steps=3, log_every=1, parallel=strategy, grad_reduce_dtype="bf16"),
    )
    train_reasoner(recipe, out, distributed=distributed)


def unequal_stops(distributed: DistributedContext) -> None:
    """Ranks whose solves end at different evaluations meet again in the next gathering of weights."""
    model = build("one-step")
    apply_fsdp(model, model.fsdp_units(), distributed, torch.float32)
    for _ in range(2):
        most = 2 + distributed.rank
        tokens, positions = Drawn().batch(2 * distributed.rank, 2)
        output = model(input_ids=tokens, position_ids=positions, labels=tokens, tolerance=1e-6, max_evaluations=most)
        assert output.solution is not None
        assert output.solution.outcome.calls == most
        output.loss.backward()


def worker(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    distributed = DistributedContext(
        rank=rank, size=size, device=torch.device("cpu"), writers=dist.new_group(backend="gloo")
    )
    found = {(name, strategy): gradients(name, distributed, strategy) for name in MODELS for strategy in STRATEGIES}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    unequal_stops(distributed)
    for strategy in STRATEGIES:
        out = Path(folder) / strategy
        run(out, distributed, strategy)
        steps = iter(range(9))
        run(out / "cut", distributed, strategy, should_pause=lambda steps=steps: rank == 1 and next(steps) == 3)
        run(out / "cut", distributed, strategy, resume=True)
        run(out / "poisoned", distributed, strategy, objective=Poisoned, gradient="implicit")
        for name, model in REASONERS.items():
            puzzles(out / name, distributed, strategy, model)
    if size == 2:
        with pytest.raises(ConfigError, match="cannot be divided"):
            NextToken(
                Drawn(), NextTokenConfig(batch_size=5, length=12), rank=distributed.rank, world_size=distributed.size
            )
        with pytest.raises(ConfigError, match="no good"):
            distributed.on_main_process(lambda: (_ for _ in ()).throw(ConfigError("no good")))
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4], ids=["2 processes", "4 processes"])
def ranks(request, tmp_path_factory) -> Path:
    """What so many processes have found and written."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker, (request.param, str(folder)), nprocs=request.param)
    return folder


def test_ranks_have_the_loss_and_every_gradient_of_one_process(ranks) -> None:
    """Of all models and gradients; solves stop where one with all rows would, and parts of a step are added up."""
    one = DistributedContext(device=torch.device("cpu"))
    for (name, strategy), (loss, calls, found) in torch.load(ranks / "found.pt").items():
        expected_loss, expected_calls, expected = gradients(name, one, strategy)
        assert loss == pytest.approx(expected_loss, rel=1e-6), (name, strategy)
        assert calls == expected_calls, (name, strategy)
        assert found.keys() == expected.keys()
        for parameter, gradient in expected.items():
            assert torch.allclose(found[parameter], gradient, rtol=1e-4, atol=1e-6), (name, strategy, parameter)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_of_many_is_the_run_of_one(ranks, strategy: str, tmp_path) -> None:
    """Losses agree step by step, to the rounding that Muon's bf16 iteration makes of rounding; the log is written once."""
    alone = run(tmp_path, DistributedContext(device=torch.device("cpu")), strategy)
    assert losses(ranks / strategy) == pytest.approx(losses(tmp_path), rel=1e-3)
    for name, value in load_file(find_checkpoint(ranks / strategy) / "model.safetensors").items():
        assert torch.allclose(value, alone.state_dict()[name], atol=5e-3), name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_of_many_resumes_bitwise(ranks, strategy: str) -> None:
    """One rank asked for a pause; all left together, and went on as if they never had."""
    assert losses(ranks / strategy / "cut") == losses(ranks / strategy)
    a, b = (load_own(find_checkpoint(out)) for out in (ranks / strategy, ranks / strategy / "cut"))
    assert len(a) == len(b) > 1
    assert all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_process_goes_on_where_many_stopped(ranks, strategy: str, tmp_path) -> None:
    """With the same data, and so the same losses, whatever the number of processes."""
    one = DistributedContext(device=torch.device("cpu"))
    run(tmp_path, one, strategy, num_steps=8)
    run(ranks / strategy, one, strategy, num_steps=8, resume=True)
    assert losses(ranks / strategy) == pytest.approx(losses(tmp_path), rel=2e-3)


@pytest.mark.parametrize("name", REASONERS)
def test_reasoners_train_alike_however_they_are_spread(ranks, name: str) -> None:
    """Replicated or divided, with gradients added up in bf16: the same losses, but for rounding."""
    one, other = (losses(ranks / strategy / name) for strategy in STRATEGIES)
    assert len(one) == 3
    assert one == pytest.approx(other, rel=1e-2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_one_rank_finds_bad_no_rank_takes(ranks, strategy: str) -> None:
    """The step is left out everywhere, said once, and the run goes on."""
    out = ranks / strategy / "poisoned"
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["the loss is nan; the step is left out"]
    assert [loss is None for loss in losses(out)] == [False, True, False, False, False, False]
