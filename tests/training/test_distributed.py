"""Training on many processes equals training on one: over gloo, with replicated and with sharded weights."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tests.ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from attractor.errors import ConfigError
from attractor.experiment.prepare import prepare_sudoku
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
from attractor.objectives import DeepSupervisionConfig, NextToken, NextTokenConfig, split_batch
from attractor.optim import OptimizerConfig
from attractor.recipes import sudoku
from attractor.recipes.puzzles import ReasonerModelConfig
from attractor.solve import synchronized
from attractor.training import DistributedContext, TrainConfig, find_checkpoint, train
from attractor.training.checkpoint import load_rank_tensors
from attractor.training.config import STRATEGIES
from attractor.training.parallel import apply_ddp, apply_fsdp, clip_gradients, gradient_sync

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


BACKBONE = r"^(?!.*\.layers\.2\.)"
CELLS = GridNetworkConfig(width=16, hidden=24, cell_hidden=16, num_cells=36)
RECURSION = TRMUpdateConfig(network=CELLS, num_latent=1)
REASONERS: dict[str, ReasonerModelConfig] = {
    "attractor": AttractorReasonerConfig(
        update=RECURSION, evaluations_per_segment=2, backprop_steps=1, random_init=False, noise=0
    ),
    "trm": TRMConfig(update=RECURSION, evaluations_per_segment=2),
    "transformer": TransformerConfig(network=CELLS),
}


class Drawn:
    """Random rows of tokens: row ``n`` has seed ``n``."""

    def batch(self, first: int, num: int) -> tuple[Tensor, Tensor]:
        rows = [torch.randint(40, (12,), generator=torch.Generator().manual_seed(n)) for n in range(first, first + num)]
        return torch.stack(rows), torch.arange(12).expand(num, 12)


def unsharded(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def build(name: str) -> LanguageModel:
    torch.manual_seed(0)
    model = MODELS[name]().train()
    for parameter in model.parameters():  # output projections start at zero, where the layers are the identity
        if parameter.ndim == 2 and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return model


def gradients(name: str, distributed: DistributedContext, strategy: str) -> tuple[float, int, dict[str, Tensor]]:
    """Return the loss, the calls and the gradients of eight rows in two accumulated batches."""
    model = build(name)
    forward: nn.Module = model
    if distributed.size > 1 and strategy == "fsdp":
        apply_fsdp(model, model.fsdp_units(), distributed, torch.float32)
    elif distributed.size > 1:
        forward = apply_ddp(model, distributed, torch.float32)
    first, num = split_batch(4, distributed.rank, distributed.size)
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
    norm = clip_gradients(model, 1e9)
    found = {name: unsharded(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    found["norm"] = norm
    return sum(distributed.mean(losses)) / 2, calls, found


class BadSecondStep(NextToken):
    """In the second step the loss of rank 1, with its gradients, is not a number."""

    rank = 0

    def step(self, model: nn.Module, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().step(model, progress)
        return (loss * torch.nan if self._row == 8 and self.rank == 1 else loss), metrics


def distilled(rows: Any, config: NextTokenConfig, **ranks: int) -> NextToken:
    """Return the objective with half of the loss towards the untrained model at depth 1."""
    return NextToken(rows, replace(config, distillation=0.5), teacher=build("one-step").eval(), **ranks)


def run(
    out: Path,
    distributed: DistributedContext,
    strategy: str,
    *,
    num_steps: int = 4,
    objective: Callable[..., Any] = NextToken,
    gradient: str = "one-step",
    freeze: str = "",
    **more: Any,
) -> nn.Module:
    """Train with four rows per step."""
    config = TrainConfig(
        num_steps=num_steps,
        freeze=freeze,
        optimizer=OptimizerConfig(lr=1e-2, muon_pattern=r"down_proj\.weight$"),
        warmup_fraction=0,
        cooldown_fraction=0,
        ema_decay=0.9,
        parallel=strategy,
        log_every=1,
        checkpoint_every=2,
    )
    rows = objective(
        Drawn(), NextTokenConfig(batch_size=4, length=12), rank=distributed.rank, world_size=distributed.size
    )
    rows.rank = distributed.rank
    model = build(gradient)
    return train(model, rows, config, out=out, metadata={}, units=model.fsdp_units(), distributed=distributed, **more)


def train_puzzles(
    out: Path, distributed: DistributedContext, strategy: str, model: ReasonerModelConfig, data: Path
) -> None:
    """Train a reasoner for three steps."""
    recipe = sudoku(6)
    recipe = replace(
        recipe,
        model=model,
        supervision=DeepSupervisionConfig(batch_size=8, max_segments=2),
        train=TrainConfig(num_steps=3, log_every=1, parallel=strategy, grad_reduce_dtype="bf16"),
    )
    train_reasoner(recipe, out, data=data, distributed=distributed)


def unequal_evaluations(distributed: DistributedContext) -> None:
    """Check that ranks may make different numbers of evaluations, although they gather weights together."""
    model = build("one-step")
    apply_fsdp(model, model.fsdp_units(), distributed, torch.float32)
    for _ in range(2):
        max_evaluations = 2 + distributed.rank
        tokens, positions = Drawn().batch(2 * distributed.rank, 2)
        limits = {"tolerance": 1e-6, "max_evaluations": max_evaluations}
        output = model(input_ids=tokens, position_ids=positions, labels=tokens, **limits)
        assert output.solution is not None
        assert output.solution.outcome.calls == max_evaluations
        output.loss.backward()


def worker(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    distributed = DistributedContext(
        rank=rank, size=size, device=torch.device("cpu"), checkpoint_group=dist.new_group(backend="gloo")
    )
    found = {(name, strategy): gradients(name, distributed, strategy) for name in MODELS for strategy in STRATEGIES}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    unequal_evaluations(distributed)
    for strategy in STRATEGIES:
        out = Path(folder) / strategy
        run(out, distributed, strategy)
        steps = iter(range(9))
        run(out / "resumed", distributed, strategy, should_pause=lambda steps=steps: rank == 1 and next(steps) == 2)
        run(out / "resumed", distributed, strategy, resume=True)
        if size == 2:
            run(out / "frozen", distributed, strategy, num_steps=3, freeze=BACKBONE, objective=distilled)
            run(out / "bad-step", distributed, strategy, objective=BadSecondStep, gradient="implicit")
            for name, model in REASONERS.items():
                train_puzzles(out / name, distributed, strategy, model, Path(folder) / "puzzles")
    if size == 2:
        with pytest.raises(ConfigError, match="cannot be divided"):
            NextToken(
                Drawn(), NextTokenConfig(batch_size=5, length=12), rank=distributed.rank, world_size=distributed.size
            )
        with pytest.raises(ConfigError, match="invalid"):
            distributed.on_main_process(lambda: (_ for _ in ()).throw(ConfigError("invalid")))
    dist.destroy_process_group()


TWO = pytest.mark.parametrize("ranks", [2], ids=["2 processes"], indirect=True)


@pytest.fixture(scope="module", params=[2, 4], ids=["2 processes", "4 processes"])
def ranks(request, tmp_path_factory) -> Path:
    """Return the folder with the results of 2 or 4 processes."""
    folder = tmp_path_factory.mktemp("ranks")
    prepare_sudoku(folder / "puzzles", size=6, clues=10, num=8, num_test=1)
    run_ranks(worker, request.param, str(folder), size=request.param)
    return folder


def test_ranks_have_the_loss_and_every_gradient_of_one_process(ranks) -> None:
    """For all models and gradient methods, with accumulated batches. Solves make equally many evaluations."""
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
def test_a_run_on_many_processes_equals_a_run_on_one(ranks, strategy: str, tmp_path) -> None:
    """The losses of every step agree up to rounding, which Muon's bf16 iteration amplifies. One rank writes the log."""
    model = run(tmp_path, DistributedContext(device=torch.device("cpu")), strategy)
    assert losses(ranks / strategy) == pytest.approx(losses(tmp_path), rel=1e-3)
    for name, value in load_file(find_checkpoint(ranks / strategy) / "model.safetensors").items():
        assert torch.allclose(value, model.state_dict()[name], atol=5e-3), name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_on_many_processes_resumes_bitwise(ranks, strategy: str) -> None:
    """One rank requests a pause, all pause, and the resumed run equals the uninterrupted one."""
    assert losses(ranks / strategy / "resumed") == losses(ranks / strategy)
    a, b = (load_rank_tensors(find_checkpoint(out)) for out in (ranks / strategy, ranks / strategy / "resumed"))
    assert len(a) == len(b) > 1
    assert all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_process_can_resume_a_run_of_many(ranks, strategy: str, tmp_path) -> None:
    """It reads the same data, and so has the same losses."""
    one = DistributedContext(device=torch.device("cpu"))
    run(tmp_path, one, strategy, num_steps=6)
    run(ranks / strategy, one, strategy, num_steps=6, resume=True)
    assert losses(ranks / strategy) == pytest.approx(losses(tmp_path), rel=2e-3)


@TWO
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_frozen_weights_stay_on_every_rank(ranks, strategy: str, tmp_path) -> None:
    """With a teacher too. The losses are those of one process, and the checkpoint holds frozen weights unchanged."""
    one = DistributedContext(device=torch.device("cpu"))
    run(tmp_path, one, strategy, num_steps=3, freeze=BACKBONE, objective=distilled)
    assert losses(ranks / strategy / "frozen") == pytest.approx(losses(tmp_path), rel=1e-3)
    start = build("one-step").state_dict()
    for name, value in load_file(find_checkpoint(ranks / strategy / "frozen") / "model.safetensors").items():
        assert torch.equal(value, start[name]) == (".layers.2." not in name), name


@TWO
@pytest.mark.parametrize("name", REASONERS)
def test_reasoners_train_alike_with_both_strategies(ranks, name: str) -> None:
    """With gradients summed in bf16, the losses agree up to rounding."""
    one, other = (losses(ranks / strategy / name) for strategy in STRATEGIES)
    assert len(one) == 3
    assert one == pytest.approx(other, rel=1e-2)


@TWO
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_bad_step_on_one_rank_is_skipped_on_all(ranks, strategy: str) -> None:
    """It is logged once, and the run continues."""
    out = ranks / strategy / "bad-step"
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["the loss is nan; the step is skipped"]
    assert [loss is None for loss in losses(out)] == [False, True, False, False]
