"""Divergence: what is taken for it, and what each policy does, on one process and on two."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from attractor.errors import ConfigError, DivergedError
from attractor.optim import OptimizerConfig
from attractor.training import DistributedContext, GuardConfig, TrainConfig, find_checkpoint, train
from attractor.training.checkpoint import load_scalars
from attractor.training.guard import LEAST, Guard
from attractor.training.parallel import STRATEGIES

ONE = DistributedContext(device=torch.device("cpu"))


def calm(guard: Guard, num: int = LEAST) -> Guard:
    """Show a guard some good steps, of losses 1.0 and 1.2 in turn and gradients of norm 1."""
    for step in range(num):
        assert guard.judge(1.0 + 0.2 * (step % 2), 1.0) is None
    return guard


@pytest.mark.parametrize(
    ("loss", "norm", "says"),
    [(math.nan, 1.0, "the loss is nan"), (math.inf, 1.0, "the loss is inf"), (1.0, math.nan, "the gradient is nan")],
)
def test_what_is_not_finite_is_bad_from_the_first_step_on(loss: float, norm: float, says: str) -> None:
    """Whatever the settings."""
    assert Guard(GuardConfig()).judge(loss, norm) == says


def test_a_loss_is_bad_above_the_median_by_deviations_and_a_tenth() -> None:
    """Of the good steps: median 1.1 and deviation 0.148 here, so that from 1.1 + 5 · 0.148 + 0.11 on it is a spike."""
    guard = calm(Guard(GuardConfig(loss_spike=5.0)))
    assert guard.judge(1.96, 1.0) == "the loss jumps to 1.96 from a median of 1.1"
    assert guard.judge(1.94, 1.0) is None
    assert guard.judge(-100.0, 1.0) is None


def test_a_gradient_is_bad_above_so_many_medians() -> None:
    guard = calm(Guard(GuardConfig(gradient_spike=4.0)))
    assert guard.judge(1.0, 3.9) is None
    assert guard.judge(1.0, 4.1) == "the gradient's norm jumps to 4.1 from a median of 1"


def test_few_steps_and_no_limits_call_nothing_a_spike() -> None:
    """The beginning of a run is steep; and without limits only what is not finite is bad."""
    early = calm(Guard(GuardConfig(loss_spike=1.0, gradient_spike=1.0)), LEAST - 1)
    assert early.judge(1e9, 1e9) is None
    assert calm(Guard(GuardConfig())).judge(1e9, 1e9) is None


def test_bad_steps_do_not_become_what_is_usual_and_old_ones_are_forgotten() -> None:
    """Spikes never enter the median; good steps leave it after the window."""
    guard = calm(Guard(GuardConfig(loss_spike=5.0, window=LEAST)))
    for _ in range(3 * LEAST):
        assert guard.judge(50.0, 1.0) is not None
    loss = 1.2
    for _ in range(10 * LEAST):  # a slow rise is no spike
        loss *= 1.01
        assert guard.judge(loss, 1.0) is None
    assert loss > 5


def test_a_drift_is_so_many_reports_in_a_row_and_told_again() -> None:
    """Any report without it begins anew; what is missing or not a number is no sign of it."""
    guard = Guard(GuardConfig(patience=3))
    told = [guard.look({"unconverged": value}) for value in (0.6, 0.6, 0.4, 0.6, 0.6, 0.6, 0.5, 0.9, 0.9, math.nan)]
    words = "most equations end above tolerance, {} reports in a row"
    assert told == [None] * 5 + [words.format(3), None, None, words.format(6), None]
    assert [guard.look({"spectral_radius": 1.0}) for _ in range(3)][-1] is not None
    assert guard.look({}) is None


def test_a_report_without_a_figure_breaks_no_drift() -> None:
    """As that of a bad step, whose model is not looked into."""
    guard = Guard(GuardConfig(patience=2))
    assert [guard.look(figures) is None for figures in ({"unconverged": 0.9}, {}, {"unconverged": 0.9})] == [
        True,
        True,
        False,
    ]


def test_a_drift_under_way_matters_where_it_is_acted_on() -> None:
    """With the policy skip it is only told."""
    for policy, expected in (("skip", False), ("rollback", True), ("stop", True)):
        guard = Guard(GuardConfig(policy=policy))
        guard.look({"unconverged": 1.0})
        assert guard.is_drifting is expected
        guard.forget()
        assert not guard.is_drifting


@pytest.mark.parametrize("num", [0, 3, LEAST + 1])
def test_a_guard_goes_on_from_its_state(num: int) -> None:
    """It judges and looks as if it had never stopped; and forgets all when told so."""
    config = GuardConfig(loss_spike=5.0, gradient_spike=4.0, patience=2, window=LEAST)
    guards = [calm(Guard(config), num), Guard(config)]
    guards[0].look({"unconverged": 1.0})
    guards[1].load_state_dict(guards[0].state_dict())
    for loss, norm in [*[(1.0, 1.0)] * (LEAST - 3), (9.0, 1.0), (1.0, 9.0)]:
        assert guards[0].judge(loss, norm) == guards[1].judge(loss, norm)
    assert guards[0].look({"unconverged": 1.0}) == guards[1].look({"unconverged": 1.0}) is not None
    guards[0].forget()
    assert guards[0].judge(9.0, 9.0) is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"policy": "rolback"}, "did you mean 'rollback'"),
        ({"max_skipped": -1}, "max_skipped"),
        ({"patience": 0}, "patience"),
        ({"window": LEAST - 1}, "window"),
        ({"rollback_rate": 0.0}, "rollback_rate"),
        ({"loss_spike": -1.0}, "loss_spike"),
        ({"gradient_spike": math.nan}, "gradient_spike"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GuardConfig(**settings)


# Through the loop


class Scripted:
    """Every step asks for another value of a line; in some of them, by how often a batch was drawn, the loss is not a number.

    ``seen`` are the weights that each step met. On several processes only the last one finds it so.
    """

    def __init__(self, distributed: DistributedContext, bad: Sequence[int] = (), unsolved: Sequence[int] = ()) -> None:
        self.distributed, self.bad, self.unsolved, self.drawn = distributed, bad, unsolved, 0
        self.seen: list[Tensor] = []

    def step(self, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        self.drawn += 1
        weight = next(model.parameters()).detach()
        self.seen.append((weight.full_tensor() if isinstance(weight, DTensor) else weight).clone())
        x = torch.full((1, 4), 0.1 * self.drawn)
        loss = (model(x) - self.drawn).square().mean()
        if self.drawn in self.bad and self.distributed.rank == self.distributed.size - 1:
            loss = loss * torch.nan
        return loss, {"unconverged": torch.tensor(float(self.drawn in self.unsolved))}

    def diagnostics(self, model: nn.Module) -> dict[str, float]:
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
    """Train for some steps, with a checkpoint every four."""
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


LEFT_OUT = "the loss is nan; the step is left out"


def test_skip_leaves_bad_steps_out_and_ends_after_too_many(tmp_path) -> None:
    """Weights stay where they were; the log counts; one more in a row than is borne ends the run and leaves the last checkpoint."""
    objective = Scripted(ONE, bad=(3, 6, 7))
    run(tmp_path / "borne", objective, GuardConfig(max_skipped=2))
    moved = [not torch.equal(a, b) for a, b in zip(objective.seen, objective.seen[1:], strict=False)]
    assert moved == [True, True, False, True, True, False, False, True, True, True, True]
    assert events(tmp_path / "borne") == [(step, LEFT_OUT) for step in (3, 6, 7)]
    assert load_scalars(find_checkpoint(tmp_path / "borne"))["skipped"] == 3
    with pytest.raises(
        DivergedError, match=r"^step 7: the loss is nan, 2 times in a row; begin anew .*step-00000004, is whole"
    ):
        run(tmp_path / "ended", Scripted(ONE, bad=(3, 6, 7)), GuardConfig(max_skipped=1))
    assert [step for step, _ in events(tmp_path / "ended")] == [3, 6, 7, 7]
    assert "2 times in a row" in events(tmp_path / "ended")[-1][1]


def test_stop_ends_at_the_first_bad_step_or_drift(tmp_path) -> None:
    """And says so in the log; before the first checkpoint there is none."""
    with pytest.raises(
        DivergedError, match=r"^step 3: the loss is nan, 1 times in a row; .* There is no checkpoint\.$"
    ):
        run(tmp_path / "bad", Scripted(ONE, bad=(3,)), GuardConfig(policy="stop"))
    assert [step for step, _ in events(tmp_path / "bad")] == [3, 3]
    with pytest.raises(DivergedError, match=r"^step 6: most equations end above tolerance, 2 reports in a row; "):
        run(tmp_path / "drift", Scripted(ONE, unsolved=(5, 6)), GuardConfig(policy="stop", patience=2))
    assert find_checkpoint(tmp_path / "drift").name == "step-00000004"


def rolls_back(out: Path, distributed: DistributedContext, strategy: str) -> None:
    """Two bad steps lead back to the fourth, twice; then a third time, which is once too often."""
    guard = GuardConfig(policy="rollback", max_skipped=1, rollback_rate=0.5, max_rollbacks=2)
    objective = Scripted(distributed, bad=(6, 7, 10, 11))
    run(out, objective, guard, distributed=distributed, strategy=strategy)
    assert torch.equal(
        objective.seen[7], objective.seen[4]
    )  # those that the fifth step met are those of the fourth checkpoint
    assert not torch.equal(objective.seen[5], objective.seen[4])
    with pytest.raises(
        DivergedError, match=r"^step 14: the loss is nan, 2 times in a row, after 2 rollbacks\. The last"
    ):
        run(
            out, Scripted(distributed, bad=(13, 14)), guard, distributed=distributed, strategy=strategy, num_steps=16, resume=True
        )  # fmt: skip


def proven(out: Path) -> None:
    """Look at what :func:`rolls_back` has written."""
    said = events(out)
    back = (
        "the loss is nan, 2 times in a row; "
        "back to the weights of step-0000000{}, on with new data at {} times the learning rate"
    )
    assert said[:3] == [(6, LEFT_OUT), (7, LEFT_OUT), (7, back.format(4, 0.5))]
    assert said[3:6] == [(10, LEFT_OUT), (11, LEFT_OUT), (11, back.format(8, 0.25))]
    assert [step for step, _ in said[6:]] == [13, 14, 14]
    assert "after 2 rollbacks" in said[-1][1]
    assert rates(out) == pytest.approx([0.1] * 7 + [0.05] * 4 + [0.025] * 3)  # a resumed run keeps it
    scalars = load_scalars(out / "step-00000012")
    assert (scalars["rollbacks"], scalars["rate"], scalars["skipped"]) == (2, 0.25, 4)


def test_rollback_takes_a_checkpoints_weights_and_half_the_rate_until_it_was_enough(tmp_path) -> None:
    """The data go on; a resumed run keeps rate and count; the log tells all of it."""
    rolls_back(tmp_path, ONE, "ddp")
    proven(tmp_path)


def test_rollback_restores_averages_and_moments_too(tmp_path) -> None:
    """After it the checkpoint of the same step number, made anew at once, holds what the one before it held."""
    kept: dict[str, Any] = {}
    guard = GuardConfig(policy="rollback", max_skipped=0, rollback_rate=1.0)
    asked = iter(range(1, 99))
    run(tmp_path, Scripted(ONE, bad=(6,)), guard, should_pause=lambda: next(asked) == 6)
    for step in (4, 6):
        checkpoint = tmp_path / f"step-{step:08d}"
        kept[step] = load_file(checkpoint / "model.safetensors")
        sums = json.loads((checkpoint / "checksums.json").read_text())["files"]
        kept[step]["shards"] = sums["training/__0_0.distcp"]
    assert kept[4].pop("shards") == kept[6].pop("shards")
    assert all(torch.equal(kept[4][name], kept[6][name]) for name in kept[4])


def test_a_drift_rolls_back_as_well_and_no_checkpoint_is_made_of_it(tmp_path) -> None:
    """Amid a drift good checkpoints would make room for one that cannot go on."""
    guard = GuardConfig(policy="rollback", patience=3)
    objective = Scripted(ONE, unsolved=(7, 8, 9))
    run(tmp_path, objective, guard)
    assert torch.equal(objective.seen[9], objective.seen[4])
    assert not (tmp_path / "step-00000008").exists()
    [(step, said)] = events(tmp_path)
    assert (step, said.split(";")[0]) == (9, "most equations end above tolerance, 3 reports in a row")


def test_without_a_checkpoint_there_is_no_way_back(tmp_path) -> None:
    with pytest.raises(DivergedError, match="step 2: the loss is nan, 1 times in a row, before there was a checkpoint"):
        run(tmp_path, Scripted(ONE, bad=(2,)), GuardConfig(policy="rollback", max_skipped=0))


def test_a_pause_amid_trouble_forgets_nothing_of_it(tmp_path) -> None:
    """Bad steps before and after it are counted together."""
    asked = iter(range(1, 99))
    guard = GuardConfig(max_skipped=2)
    run(tmp_path, Scripted(ONE, bad=(5, 6, 7)), guard, should_pause=lambda: next(asked) == 6)
    with pytest.raises(DivergedError, match="step 7: the loss is nan, 3 times in a row"):
        run(tmp_path, Scripted(ONE, bad=(5, 6, 7)), guard, resume=True)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    distributed = DistributedContext(
        rank=rank, size=2, device=torch.device("cpu"), writers=dist.new_group(backend="gloo")
    )
    for strategy in STRATEGIES:
        rolls_back(Path(folder) / strategy, distributed, strategy)
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")
def test_two_ranks_roll_back_together(tmp_path) -> None:
    """Though only one of them found a loss that was not a number; with replicated and with divided weights."""
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    for strategy in STRATEGIES:
        proven(tmp_path / strategy)
