"""The training loop, its checkpoints and exact resume."""

import json
import warnings
from dataclasses import replace

import pytest
import torch

from attractor.errors import CheckpointError, ConfigError
from attractor.experiment.loading import load_reasoner
from attractor.experiment.puzzles import train_reasoner
from attractor.models.reasoning import AttractorReasonerConfig
from attractor.nn import GatedConvolutionUpdateConfig
from attractor.objectives import DeepSupervision, DeepSupervisionConfig
from attractor.optim import trapezoid
from attractor.recipes import MazeDataConfig, PuzzleRecipe
from attractor.training import TrainConfig, find_checkpoint, loop
from attractor.training.parallel import averaged_model

TINY = PuzzleRecipe(
    model=AttractorReasonerConfig(
        update=GatedConvolutionUpdateConfig(width=8), evaluations_per_segment=4, backprop_steps=2
    ),
    data=MazeDataConfig(num_puzzles=50, size=7),
    supervision=DeepSupervisionConfig(batch_size=8, max_segments=3, replace_solved_prob=0.5),
    train=TrainConfig(num_steps=24, log_every=4, checkpoint_every=10),
)


class Interrupt:
    """A callback that interrupts the run, as Ctrl-C does, after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, report) -> None:
        if report.step >= self.step:
            raise KeyboardInterrupt


def contents(path) -> dict[str, dict[str, int]]:
    """Return the checksums of all tensors in the newest checkpoint."""
    sums = json.loads((find_checkpoint(path) / "checksums.json").read_text())["files"]
    return {name: value for name, value in sums.items() if name.endswith((".safetensors", ".distcp"))}


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path) -> None:
    """Weights, optimiser, average, carried states, data and random numbers continue from the checkpoint."""
    train_reasoner(TINY, tmp_path / "uninterrupted")
    with pytest.raises(KeyboardInterrupt):
        train_reasoner(TINY, tmp_path / "resumed", callbacks=[Interrupt(16)])
    assert find_checkpoint(tmp_path / "resumed").name == "step-00000010"
    train_reasoner(TINY, tmp_path / "resumed", resume=True)
    assert len(contents(tmp_path / "uninterrupted")) == 3
    assert contents(tmp_path / "uninterrupted") == contents(tmp_path / "resumed")


def test_training_lowers_the_loss_and_is_repeatable(tmp_path) -> None:
    """The same seed gives the same losses, and they fall."""
    config = replace(TINY, train=replace(TINY.train, num_steps=60, checkpoint_every=0))
    runs = []
    for name in ("a", "b"):
        train_reasoner(config, tmp_path / name)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        runs.append([json.loads(line)["loss"] for line in lines])
    assert runs[0] == runs[1]
    assert runs[0][-1] < 0.7 * runs[0][0]


def test_a_checkpoint_contains_the_averaged_model(tmp_path) -> None:
    """Loading it returns the model that training returned. Only the newest checkpoints are kept."""
    model = train_reasoner(TINY, tmp_path).model
    loaded = load_reasoner(tmp_path).model
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000020", "step-00000024"]


@pytest.mark.parametrize(("decay", "num_steps", "least", "most"), [(0.995, 60, 0.99, 1.0), (0.5, 60, 1 - 1e-9, 1.0)])
def test_the_average_of_a_short_run_does_not_keep_the_initial_weights(decay, num_steps, least, most) -> None:
    """Weights that jump from 0 to 1 after the first step: the average follows within a few steps, at any decay."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    average = averaged_model(model, decay)
    for step in range(num_steps):
        torch.nn.init.constant_(model.weight, float(step > 0))
        average.update_parameters(model)
    assert least < average.module.weight.item() <= most


def test_the_decay_of_a_long_run_is_the_setting() -> None:
    """After thousands of steps, one step moves the average by ``1 - decay`` of the difference."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    average = averaged_model(model, 0.99)
    torch.nn.init.zeros_(model.weight)
    for _ in range(1000):
        average.update_parameters(model)
    torch.nn.init.ones_(model.weight)
    average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(0.01)


@pytest.mark.parametrize(("share", "measured"), [(1e-9, [4, 24]), (1e9, [4, 8, 12, 16, 20, 24])])
def test_held_out_accuracy_of_last_and_averaged_weights_is_logged(share, measured, tmp_path, monkeypatch) -> None:
    """At the first and the last report, and in between as often as the share of time allows. Training is the same."""
    monkeypatch.setattr(loop, "EVALUATION_SHARE", share)
    trained = train_reasoner(TINY, tmp_path / "with").model.state_dict()
    lines = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    names = ("held_out", "held_out_ema", "held_out_converged_ema", "held_out_evaluations_ema")
    assert [line["step"] for line in lines if "held_out" in line] == measured
    assert all(name in lines[-1] for name in names)
    monkeypatch.setattr(DeepSupervision, "evaluate", lambda *_: {})
    without = train_reasoner(TINY, tmp_path / "without").model.state_dict()
    assert all(torch.equal(trained[name], without[name]) for name in trained)


def damage(checkpoint, how: str) -> None:
    file = checkpoint / "model.safetensors"
    config = checkpoint / "run.json"
    if how == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "not safetensors":
        file.write_bytes(b"PK\x03\x04 such as a pickle")
    elif how == "missing":
        file.unlink()
    elif how == "other shapes":
        config.write_text(config.read_text().replace('"width": 8', '"width": 16'))
        (checkpoint / "checksums.json").unlink()
    elif how == "unknown key":
        config.write_text(config.read_text().replace('"width": 8', '"width": 8, "depht": 2'))
    elif how == "not JSON":
        config.write_text("{")
    elif how == "foreign":
        config.write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    elif how == "other kind":
        config.write_text(config.read_text().replace('"kind": "reasoner"', '"kind": "chess"'))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("cut short", "model.safetensors"),
        ("not safetensors", "model.safetensors"),
        ("missing", "model.safetensors"),
        ("other shapes", "does not fit"),
        ("unknown key", "depht"),
        ("not JSON", "run.json"),
        ("foreign", "not a checkpoint of this package"),
        ("other kind", "'chess'"),
    ],
)
def test_damaged_and_foreign_checkpoints_are_refused(tmp_path, how: str, says: str) -> None:
    """The message names the file, and nothing is loaded."""
    train_reasoner(replace(TINY, train=replace(TINY.train, num_steps=2)), tmp_path)
    damage(find_checkpoint(tmp_path), how)
    with pytest.raises(CheckpointError, match=says):
        load_reasoner(tmp_path)


def test_resuming_with_another_recipe_is_refused(tmp_path) -> None:
    """The message names the setting that differs. The length of the run may change."""
    short = replace(TINY, train=replace(TINY.train, num_steps=2))
    train_reasoner(short, tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.noise is 0\.01 there and 0\.5 here"):
        train_reasoner(replace(short, model=replace(short.model, noise=0.5)), tmp_path, resume=True)
    train_reasoner(replace(TINY, train=replace(TINY.train, num_steps=4)), tmp_path, resume=True)
    assert find_checkpoint(tmp_path).name == "step-00000004"


def test_the_log_of_a_resumed_run_has_every_step_once(tmp_path) -> None:
    """Steps that are repeated after a resume are not logged twice."""
    with pytest.raises(KeyboardInterrupt):
        train_reasoner(TINY, tmp_path, callbacks=[Interrupt(16)])
    train_reasoner(TINY, tmp_path, resume=True)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 8, 12, 16, 20, 24]


def test_training_neither_warns_nor_changes_warning_filters(tmp_path) -> None:
    """Saving, resuming and loading give no warnings, although no filter hides them."""
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for num_steps in (2, 4):
            recipe = replace(TINY, train=replace(TINY.train, num_steps=num_steps))
            train_reasoner(recipe, tmp_path, resume=num_steps > 2)
    assert [str(warning.message) for warning in caught] == []
    assert warnings.filters == before


def test_a_run_needs_an_end() -> None:
    """Without steps and seconds, the configuration is refused."""
    with pytest.raises(ConfigError, match="num_steps or seconds"):
        TrainConfig()


def test_the_schedule_rises_stays_and_falls() -> None:
    """With progress, from 0 to 1 and back to 0."""
    values = [trapezoid(p, warmup_fraction=0.1, cooldown_fraction=0.5) for p in (0, 0.05, 0.1, 0.3, 0.5, 0.75, 1)]
    assert values == pytest.approx([0, 0.5, 1, 1, 1, 0.5, 0])
