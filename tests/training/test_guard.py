"""Divergence: what counts as divergence, and what each policy does, on one process and on two."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tests.ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from attractor.errors import ConfigError, DivergedError
from attractor.optim import OptimizerConfig
from attractor.training import DistributedContext, GuardConfig, TrainConfig, find_checkpoint, train
from attractor.training.checkpoint import load_scalars
from attractor.training.config import STRATEGIES
from attractor.training.guard import MIN_HISTORY, Action, Decision, Guard

ONE = DistributedContext(device=torch.device("cpu"))


def problem(guard: Guard, loss: float, grad_norm: float) -> str | None:
    """Return why the guard skips a step, or None."""
    decision = guard.check_step(loss, grad_norm)
    assert decision.action is (Action.SKIP if decision.reason else Action.CONTINUE)
    return decision.reason or None


def drift(guard: Guard, metrics: dict[str, float]) -> str | None:
    """Return the drift that the guard finds in a report, or None."""
    return guard.check_run(metrics).reason or None


def after_good_steps(guard: Guard, num: int = MIN_HISTORY) -> Guard:
    """Return the guard after good steps with losses 1.0 and 1.2 in turn and gradients of norm 1."""
    for step in range(num):
        assert problem(guard, 1.0 + 0.2 * (step % 2), 1.0) is None
    return guard


@pytest.mark.parametrize(
    ("loss", "norm", "says"),
    [
        (math.nan, 1.0, "the loss is nan"),
        (math.inf, 1.0, "the loss is inf"),
        (1.0, math.nan, "the gradient norm is nan"),
    ],
)
def test_numbers_that_are_not_finite_are_bad_from_the_first_step_on(loss: float, norm: float, says: str) -> None:
    """With any settings."""
    assert problem(Guard(GuardConfig()), loss, norm) == says


def test_a_loss_far_above_the_median_is_bad() -> None:
    """The median is 1.1 and the deviation 0.148 here, so a loss above 1.1 + 5 · 0.148 + 0.11 is a spike."""
    guard = after_good_steps(Guard(GuardConfig(loss_spike=5.0)))
    assert problem(guard, 1.96, 1.0) == "the loss jumps to 1.96 from a median of 1.1"
    assert problem(guard, 1.94, 1.0) is None
    assert problem(guard, -100.0, 1.0) is None


def test_a_gradient_norm_far_above_the_median_is_bad() -> None:
    """The limit is a multiple of the median norm."""
    guard = after_good_steps(Guard(GuardConfig(gradient_spike=4.0)))
    assert problem(guard, 1.0, 3.9) is None
    assert problem(guard, 1.0, 4.1) == "the gradient norm jumps to 4.1 from a median of 1"


def test_nothing_is_a_spike_in_the_first_steps_or_without_limits() -> None:
    """The loss changes fast at the beginning. Without limits only numbers that are not finite are bad."""
    early = after_good_steps(Guard(GuardConfig(loss_spike=1.0, gradient_spike=1.0)), MIN_HISTORY - 1)
    assert problem(early, 1e9, 1e9) is None
    assert problem(after_good_steps(Guard(GuardConfig())), 1e9, 1e9) is None


def test_only_recent_good_steps_enter_the_median() -> None:
    """Bad steps never enter it, and good steps leave it after the window."""
    guard = after_good_steps(Guard(GuardConfig(loss_spike=5.0, window=MIN_HISTORY)))
    for _ in range(3 * MIN_HISTORY):
        assert problem(guard, 50.0, 1.0) is not None
    loss = 1.2
    for _ in range(10 * MIN_HISTORY):  # a slow rise is no spike
        loss *= 1.01
        assert problem(guard, loss, 1.0) is None
    assert loss > 5


def test_a_drift_is_patience_reports_in_a_row_and_is_reported_again() -> None:
    """A report without it resets the count. A missing metric, or one that is not a number, does not."""
    guard = Guard(GuardConfig(patience=3))
    found = [drift(guard, {"unconverged": value}) for value in (0.6, 0.6, 0.4, 0.6, 0.6, 0.6, 0.5, 0.9, 0.9, math.nan)]
    words = "most equations end above tolerance, {} reports in a row"
    assert found == [None] * 5 + [words.format(3), None, None, words.format(6), None]
    assert [drift(guard, {"spectral_radius": 1.0}) for _ in range(3)][-1] is not None
    assert drift(guard, {}) is None


def test_a_report_without_the_metric_does_not_end_a_drift() -> None:
    """A skipped step has no diagnostics."""
    guard = Guard(GuardConfig(patience=2))
    assert [drift(guard, metrics) is None for metrics in ({"unconverged": 0.9}, {}, {"unconverged": 0.9})] == [
        True,
        True,
        False,
    ]


def test_a_drift_prevents_checkpoints_unless_the_policy_is_skip() -> None:
    """With that policy it is only logged."""
    for policy, expected in (("skip", False), ("rollback", True), ("stop", True)):
        guard = Guard(GuardConfig(policy=policy))
        guard.check_run({"unconverged": 1.0})
        assert guard.in_trouble is expected
        guard.record_rollback()
        assert not guard.in_trouble


@pytest.mark.parametrize("num", [0, 3, MIN_HISTORY + 1])
def test_a_guard_continues_from_its_state(num: int) -> None:
    """It decides as if it had never stopped, and forgets its history after a rollback."""
    config = GuardConfig(loss_spike=5.0, gradient_spike=4.0, patience=2, window=MIN_HISTORY)
    guards = [after_good_steps(Guard(config), num), Guard(config)]
    guards[0].check_run({"unconverged": 1.0})
    guards[1].load_state_dict(guards[0].state_dict(), guards[0].scalars())
    for loss, norm in [*[(1.0, 1.0)] * (MIN_HISTORY - 3), (9.0, 1.0), (1.0, 9.0)]:
        assert guards[0].check_step(loss, norm) == guards[1].check_step(loss, norm)
    for guard in guards:
        assert guard.check_step(1.0, 1.0) == Decision()
    assert drift(guards[0], {"unconverged": 1.0}) == drift(guards[1], {"unconverged": 1.0}) is not None
    guards[0].record_rollback()
    assert guards[0].check_step(9.0, 9.0) == Decision()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"policy": "rolback"}, "did you mean 'rollback'"),
        ({"max_skipped": -1}, "max_skipped"),
        ({"patience": 0}, "patience"),
        ({"window": MIN_HISTORY - 1}, "window"),
        ({"rollback_rate": 0.0}, "rollback_rate"),
        ({"loss_spike": -1.0}, "loss_spike"),
        ({"gradient_spike": math.nan}, "gradient_spike"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigError, match=says):
        GuardConfig(**settings)


# Through the loop


class Scripted:
    """An objective with a new target at every step. In ``bad`` steps the loss of the last rank is not a number.

    Steps are counted by the batches drawn. ``seen`` has the weights at each step.
    """

    def __init__(
        self, distributed: DistributedContext, bad: Sequence[int] = (), unconverged: Sequence[int] = ()
    ) -> None:
        self.distributed, self.bad, self.unconverged, self.drawn = distributed, bad, unconverged, 0
        self.seen: list[Tensor] = []

    def step(self, model: nn.Module, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        self.drawn += 1
        weight = next(model.parameters()).detach()
        self.seen.append((weight.full_tensor() if isinstance(weight, DTensor) else weight).clone())
        x = torch.full((1, 4), 0.1 * self.drawn)
        loss = (model(x) - self.drawn).square().mean()
        if self.drawn in self.bad and self.distributed.rank == self.distributed.size - 1:
            loss = loss * torch.nan
        return loss, {"unconverged": torch.tensor(float(self.drawn in self.unconverged))}

    def diagnostics(self, model: nn.Module) -> dict[str, float]:
        return {}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {"drawn": torch.tensor(self.drawn)}

    def load_state_dict(self, states: Sequence[dict[str, Tensor]]) -> None:
        self.drawn = int(states[0]["drawn"])


def run(
    out: Path,
    objective: Scripted,
    guard: GuardConfig,
    *,
    num_steps: int = 12,
    distributed: DistributedContext = ONE,
    **more: Any,
) -> nn.Module:
    """Train for some steps, with a checkpoint every four steps."""
    torch.manual_seed(0)
    strategy = more.pop("strategy", "ddp")
    config = TrainConfig(
        num_steps=num_steps, guard=guard, optimizer=OptimizerConfig(lr=0.1), warmup_fraction=0, cooldown_fraction=0, ema_decay=0.5,
        log_every=1, checkpoint_every=4, max_checkpoints=9, parallel=strategy,
    )  # fmt: skip
    return train(nn.Linear(4, 2), objective, config, out=out, metadata={}, distributed=distributed, **more)


def events(out: Path) -> list[tuple[int, str]]:
    return [(e["step"], e["event"]) for e in map(json.loads, (out / "events.jsonl").read_text().splitlines())]


def rates(out: Path) -> list[float]:
    return [json.loads(line)["lr"] for line in (out / "metrics.jsonl").read_text().splitlines()]


SKIPPED = "the loss is nan; the step is skipped"


def test_skip_skips_bad_steps_and_stops_after_too_many(tmp_path) -> None:
    """A bad step does not change the weights. Too many in a row stop the run, and the last checkpoint stays."""
    objective = Scripted(ONE, bad=(3, 6, 7))
    run(tmp_path / "allowed", objective, GuardConfig(max_skipped=2))
    moved = [not torch.equal(a, b) for a, b in zip(objective.seen, objective.seen[1:], strict=False)]
    assert moved == [True, True, False, True, True, False, False, True, True, True, True]
    assert events(tmp_path / "allowed") == [(step, SKIPPED) for step in (3, 6, 7)]
    assert load_scalars(find_checkpoint(tmp_path / "allowed"))["skipped"] == 3
    with pytest.raises(
        DivergedError,
        match=r"^step 7: the loss is nan \(bad steps in a row: 2\); start again .*step-00000004, is complete",
    ):
        run(tmp_path / "stopped", Scripted(ONE, bad=(3, 6, 7)), GuardConfig(max_skipped=1))
    assert [step for step, _ in events(tmp_path / "stopped")] == [3, 6, 7, 7]
    assert "bad steps in a row: 2" in events(tmp_path / "stopped")[-1][1]


def test_a_run_that_skipped_every_step_fails(tmp_path) -> None:
    """It learned nothing, so it writes no checkpoint."""
    with pytest.raises(DivergedError, match="every step was skipped, because its loss or gradients were not finite"):
        run(tmp_path, Scripted(ONE, bad=range(1, 13)), GuardConfig())
    assert not list(tmp_path.glob("step-*"))


def test_stop_stops_at_the_first_bad_step_or_drift(tmp_path) -> None:
    """The log and the error say whether there is a checkpoint."""
    with pytest.raises(
        DivergedError, match=r"^step 3: the loss is nan \(bad steps in a row: 1\); .* There is no checkpoint\.$"
    ):
        run(tmp_path / "bad", Scripted(ONE, bad=(3,)), GuardConfig(policy="stop"))
    assert [step for step, _ in events(tmp_path / "bad")] == [3, 3]
    with pytest.raises(DivergedError, match=r"^step 6: most equations end above tolerance, 2 reports in a row; "):
        run(tmp_path / "drift", Scripted(ONE, unconverged=(5, 6)), GuardConfig(policy="stop", patience=2))
    assert find_checkpoint(tmp_path / "drift").name == "step-00000004"


def rolls_back(out: Path, distributed: DistributedContext, strategy: str) -> None:
    """Two bad steps cause a rollback to the last checkpoint, twice. The third time exceeds the limit."""
    guard = GuardConfig(policy="rollback", max_skipped=1, rollback_rate=0.5, max_rollbacks=2)
    objective = Scripted(distributed, bad=(6, 7, 10, 11))
    run(out, objective, guard, distributed=distributed, strategy=strategy)
    # The checkpoint of step 4 has the weights at the fifth step.
    assert torch.equal(objective.seen[7], objective.seen[4])
    assert not torch.equal(objective.seen[5], objective.seen[4])
    with pytest.raises(
        DivergedError,
        match=r"^step 14: the loss is nan \(bad steps in a row: 2\); the limit max_rollbacks=2 is reached\. The last",
    ):
        run(
            out, Scripted(distributed, bad=(13, 14)), guard, distributed=distributed, strategy=strategy, num_steps=16, resume=True
        )  # fmt: skip


def check_rollbacks(out: Path) -> None:
    """Check what :func:`rolls_back` has written."""
    logged = events(out)
    rolled_back = (
        "the loss is nan (bad steps in a row: 2); "
        "rolled back to the weights of step-0000000{}, continuing with new data at {} times the learning rate"
    )
    assert logged[:3] == [(6, SKIPPED), (7, SKIPPED), (7, rolled_back.format(4, 0.5))]
    assert logged[3:6] == [(10, SKIPPED), (11, SKIPPED), (11, rolled_back.format(8, 0.25))]
    assert [step for step, _ in logged[6:]] == [13, 14, 14]
    assert "max_rollbacks=2 is reached" in logged[-1][1]
    assert rates(out) == pytest.approx([0.1] * 7 + [0.05] * 4 + [0.025] * 3)  # a resumed run keeps it
    scalars = load_scalars(out / "step-00000012")
    assert (scalars["rollbacks"], scalars["lr_factor"], scalars["skipped"]) == (2, 0.25, 4)


def test_rollback_restores_weights_and_halves_the_learning_rate_up_to_a_limit(tmp_path) -> None:
    """The data continue, a resumed run keeps learning rate and count, and everything is logged."""
    rolls_back(tmp_path, ONE, "ddp")
    check_rollbacks(tmp_path)


def test_rollback_restores_averages_and_moments_too(tmp_path) -> None:
    """A checkpoint written at once after a rollback has the tensors of the one before."""
    kept: dict[str, Any] = {}
    guard = GuardConfig(policy="rollback", max_skipped=0, rollback_rate=1.0)
    calls = iter(range(1, 99))
    run(tmp_path, Scripted(ONE, bad=(6,)), guard, should_pause=lambda: next(calls) == 6)
    for step in (4, 6):
        checkpoint = tmp_path / f"step-{step:08d}"
        kept[step] = load_file(checkpoint / "model.safetensors")
        sums = json.loads((checkpoint / "checksums.json").read_text())["files"]
        kept[step]["shards"] = sums["training/__0_0.distcp"]
    assert kept[4].pop("shards") == kept[6].pop("shards")
    assert all(torch.equal(kept[4][name], kept[6][name]) for name in kept[4])


def test_a_drift_causes_a_rollback_and_no_checkpoint_is_written_during_it(tmp_path) -> None:
    """Such checkpoints would replace the good ones."""
    guard = GuardConfig(policy="rollback", patience=3)
    objective = Scripted(ONE, unconverged=(7, 8, 9))
    run(tmp_path, objective, guard)
    assert torch.equal(objective.seen[9], objective.seen[4])
    assert not (tmp_path / "step-00000008").exists()
    [(step, event)] = events(tmp_path)
    assert (step, event.split(";")[0]) == (9, "most equations end above tolerance, 3 reports in a row")


def test_a_rollback_without_a_checkpoint_stops_the_run(tmp_path) -> None:
    """The message says so."""
    with pytest.raises(
        DivergedError, match=r"step 2: the loss is nan .*, and a rollback needs a checkpoint\. There is no"
    ):
        run(tmp_path, Scripted(ONE, bad=(2,)), GuardConfig(policy="rollback", max_skipped=0))


def test_a_pause_between_bad_steps_does_not_reset_their_number(tmp_path) -> None:
    """Bad steps before and after the pause add up."""
    calls = iter(range(1, 99))
    guard = GuardConfig(max_skipped=2)
    run(tmp_path, Scripted(ONE, bad=(5, 6, 7)), guard, should_pause=lambda: next(calls) == 6)
    with pytest.raises(DivergedError, match=r"step 7: the loss is nan \(bad steps in a row: 3\)"):
        run(tmp_path, Scripted(ONE, bad=(5, 6, 7)), guard, resume=True)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    distributed = DistributedContext(
        rank=rank, size=2, device=torch.device("cpu"), checkpoint_group=dist.new_group(backend="gloo")
    )
    for strategy in STRATEGIES:
        rolls_back(Path(folder) / strategy, distributed, strategy)
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")
def test_all_ranks_roll_back_if_one_has_a_bad_loss(tmp_path) -> None:
    """With replicated and with sharded weights."""
    run_ranks(worker, str(tmp_path), size=2)
    for strategy in STRATEGIES:
        check_rollbacks(tmp_path / strategy)
