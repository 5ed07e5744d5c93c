"""ARC: tasks as JSON, names, symmetries, votes, and training with an embedding per name."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import attractor
from attractor import recipes
from attractor.cli import main
from attractor.data import ARC, PuzzleSet, arc, puzzles
from attractor.data.arc import EOS, PAD, SIDE, Name, Transform, make_splits, move_pairs, read_grid, read_tasks, to_cells
from attractor.errors import ConfigError, DataError
from attractor.evaluation import exact, pass_at_k
from attractor.experiment.prepare import prepare_arc
from attractor.experiment.published import import_checkpoint
from attractor.experiment.puzzle_evaluation import _votes, held_out_puzzles
from attractor.experiment.puzzles import as_tensors, train_reasoner
from attractor.interop import export_reasoner
from attractor.models.reasoning import TRMConfig
from attractor.nn import GridNetworkConfig, TRMUpdateConfig
from attractor.nn.grid import swiglu_hidden
from attractor.objectives import DeepSupervision, DeepSupervisionConfig
from attractor.optim import OptimizerConfig, SignSGD
from attractor.training import DistributedContext
from attractor.training.state import TrainingState

Grid = NDArray[np.uint8]
Pair = dict[str, Any]


def pair(task: str, grid: Grid) -> Pair:
    """The task "flip" reverses the rows of a grid, "swap" exchanges colours 1 and 2."""
    output = grid[::-1] if task == "flip" else np.array([0, 2, 1, *range(3, 10)])[grid]
    return {"input": grid.tolist(), "output": output.tolist()}


def toy_folder(folder: Path) -> Path:
    """A training task and an evaluation task with two test inputs, as ARC-AGI is published."""
    rng = np.random.default_rng(0)
    for part, task, num_test in (("training", "flip", 1), ("evaluation", "swap", 2)):
        pairs = [pair(task, rng.integers(4, size=(2, 3))) for _ in range(3 + num_test)]
        (folder / part).mkdir(parents=True)
        (folder / part / f"{task}.json").write_text(json.dumps({"train": pairs[:3], "test": pairs[3:]}))
    return folder


@pytest.fixture
def tasks(tmp_path: Path) -> list[arc.Task]:
    return read_tasks(toy_folder(tmp_path / "arc"))


def test_a_grid_is_read_back_from_its_cells_wherever_it_lies() -> None:
    grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
    cells = to_cells(grid)
    assert (cells[2, :3] == EOS).all()
    assert (cells[:2, 3] == EOS).all()
    assert cells[2, 3] == PAD
    np.testing.assert_array_equal(read_grid(cells), grid)
    full = np.full((SIDE, SIDE), 9, np.uint8)
    np.testing.assert_array_equal(read_grid(to_cells(full)), full)
    assert read_grid(np.full((SIDE, SIDE), EOS, np.uint8)).size == 0
    moved = to_cells(grid, 4, 5)
    np.testing.assert_array_equal(moved[4:6, 5:8], grid + 2)


@pytest.mark.parametrize("dihedral", range(8))
def test_a_symmetry_is_undone(dihedral: int) -> None:
    grid = np.random.default_rng(0).integers(10, size=(3, 5)).astype(np.uint8)
    transform = Transform(dihedral, (0, 2, 3, 1, 4, 9, 6, 7, 8, 5))
    np.testing.assert_array_equal(transform.undo(transform.apply(grid)), grid)


def test_symmetries_have_the_numbers_of_the_published_code() -> None:
    a = np.arange(6, dtype=np.uint8).reshape(2, 3)
    expected = [a, np.rot90(a), np.rot90(a, 2), np.rot90(a, 3), np.fliplr(a), np.flipud(a), a.T, np.fliplr(np.rot90(a))]
    for dihedral, grid in enumerate(expected):
        np.testing.assert_array_equal(Transform(dihedral).apply(a), grid)


def test_a_name_is_read_as_it_is_written() -> None:
    name = Name("007bbfb7", Transform(3, (0, 2, 1, 3, 4, 5, 6, 7, 8, 9)))
    assert str(name) == "007bbfb7|||t3|||0213456789"
    assert Name.parse(str(name)) == name
    assert Name.parse("007bbfb7") == Name("007bbfb7")
    for wrong in ("", "a|||t8|||0123456789", "a|||t1|||0123456788", "a|b"):
        with pytest.raises(DataError, match="not the name of a puzzle"):
            Name.parse(wrong)


def test_test_pairs_of_the_evaluation_alone_are_held_out(tasks: list[arc.Task]) -> None:
    splits = make_splits(tasks, num_augmentations=4)
    train, test = splits["train"], splits["test"]
    assert train.names is not None
    assert test.names is not None
    assert (len(train), len(test)) == (5 * (4 + 3), 5 * 2)
    assert {Name.parse(test.all_names[n]).task for n in test.names} == {"swap"}
    assert len(set(test.all_names)) == 1 + 2 * 5
    assert test.all_names[0] == "<blank>"
    assert not len(ARC.find_copies(test, train))


def test_names_of_a_published_model_give_the_same_puzzles(tasks: list[arc.Task]) -> None:
    first = make_splits(tasks, num_augmentations=4, seed=1)["test"]
    again = make_splits(tasks, num_augmentations=0, names=first.all_names)["test"]
    np.testing.assert_array_equal(first.questions, again.questions)
    np.testing.assert_array_equal(first.names, again.names)
    with pytest.raises(DataError, match="there is no task 'other'"):
        make_splits(tasks, num_augmentations=0, names=(*first.all_names, "other"))


def test_files_of_kaggle_hold_the_same_tasks(tasks: list[arc.Task], tmp_path: Path) -> None:
    out = tmp_path / "kaggle"
    out.mkdir()
    for part in ("training", "evaluation"):
        file = next((tmp_path / "arc" / part).glob("*.json"))
        task = json.loads(file.read_text())
        outputs = [pair.pop("output") for pair in task["test"]]
        (out / f"arc-agi_{part}_challenges.json").write_text(json.dumps({file.stem: task}))
        (out / f"arc-agi_{part}_solutions.json").write_text(json.dumps({file.stem: outputs}))
    for one, other in zip(tasks, read_tasks(out), strict=True):
        assert (one.name, one.is_held_out) == (other.name, other.is_held_out)
        np.testing.assert_array_equal(one.test[0][1], other.test[0][1])
    (out / "arc-agi_training_solutions.json").unlink()
    with pytest.raises(DataError, match="has no solutions"):
        read_tasks(out)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([[10]], "colours are 0 to 9"),
        ([[-1]], "colours are 0 to 9"),
        ([[0] * 31], "rows of 1 to 30 whole numbers"),
        ([], "rows of 1 to 30 whole numbers"),
        ([[1], [1, 2]], "rows of different lengths"),
        ([[0.5]], "whole numbers"),
        (None, "whole numbers"),
    ],
)
def test_a_grid_out_of_range_is_named(grid: Any, message: str, tmp_path: Path) -> None:
    folder = toy_folder(tmp_path / "arc")
    file = folder / "evaluation" / "swap.json"
    task = json.loads(file.read_text())
    task["test"][1]["output"] = grid
    file.write_text(json.dumps(task))
    with pytest.raises(DataError, match=re.escape("swap, test pair 2: ") + ".*" + message):
        read_tasks(folder)


def test_a_task_in_two_parts_is_refused(tmp_path: Path) -> None:
    """Its test pairs would be trained."""
    folder = toy_folder(tmp_path / "arc")
    (folder / "training" / "swap.json").write_text((folder / "evaluation" / "swap.json").read_text())
    with pytest.raises(DataError, match="task swap: occurs in another part"):
        read_tasks(folder)


def test_a_test_pair_that_is_trained_is_left_out(tmp_path: Path) -> None:
    """In all its copies."""
    folder = toy_folder(tmp_path / "arc")
    task = json.loads((folder / "evaluation" / "swap.json").read_text())
    task["train"].append(task["test"][0])
    (folder / "evaluation" / "swap.json").write_text(json.dumps(task))
    summary = prepare_arc(folder, tmp_path / "data", num_augmentations=2)
    assert summary.num_copies == 3
    assert len(puzzles.read(tmp_path / "data", "test")) == 3


def test_a_folder_without_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no tasks of ARC"):
        read_tasks(tmp_path)


def test_both_grids_of_a_pair_are_moved_alike_and_one_pair_of_each_name_stays(tasks: list[arc.Task]) -> None:
    """Which one is random, as in TRM's data."""
    data = make_splits(tasks, num_augmentations=20)["train"]
    assert data.names is not None
    moved = move_pairs(data, np.random.default_rng(0))
    assert (moved.names == data.names).all()
    grids = zip(data.questions, data.answers, moved.questions, moved.answers, data.names.tolist(), strict=True)
    stays: dict[int, list[bool]] = {}
    places = set()
    for question, answer, q, a, name in grids:
        row, column = np.argwhere(q >= 2).min(axis=0)
        for before, after in ((question, q), (answer, a)):
            np.testing.assert_array_equal(to_cells(arc.read_grid(before), row, column), after)
        stays.setdefault(name, []).append((row, column) == (0, 0))
        places.add((int(row), int(column)))
    assert all(any(one) for one in stays.values())
    assert sum(map(sum, stays.values())) < 1.1 * len(stays)  # a move by nothing is rare
    assert len({one.index(True) for one in stays.values()}) > 1
    assert len(places) > 25


def test_parts_are_chosen(tmp_path: Path) -> None:
    """The parts of TRM's data hold tasks of each other, so that not all can be read together."""
    folder = toy_folder(tmp_path / "arc")
    (folder / "training2").mkdir()
    (folder / "training2" / "swap.json").write_text((folder / "evaluation" / "swap.json").read_text())
    with pytest.raises(DataError, match=r"leave one of them out \(--parts\)"):
        read_tasks(folder)
    assert read_tasks(folder, ["training", "evaluation"])
    with pytest.raises(DataError, match="holds no part 'concept'"):
        read_tasks(folder, ["training", "evaluation", "concept"])


def test_every_copy_of_a_test_input_votes(tasks: list[arc.Task]) -> None:
    """Two of five copies are right and three are wrong in different ways: the right answer has the most votes."""
    test = make_splits(tasks, num_augmentations=4, seed=3)["test"]
    answers = torch.from_numpy(test.answers.copy())
    assert pass_at_k(test, answers, torch.zeros(len(test))) == {"pass@1": 1.0, "pass@2": 1.0}
    which = [(Name.parse(test.all_names[n]).transform, i) for i, n in enumerate(test.names)]  # type: ignore[arg-type]
    for n, (transform, i) in enumerate(which):
        if n // 2 >= 2:  # both test inputs of a copy lie side by side
            wrong = transform.apply(np.full((1, 1 + n // 2), 5, np.uint8))
            answers[i] = torch.from_numpy(to_cells(wrong))
    assert pass_at_k(test, answers, torch.zeros(len(test)))["pass@1"] == 1.0
    for n, (transform, i) in enumerate(which):
        if n // 2 >= 2:  # now the three wrong ones agree
            answers[i] = torch.from_numpy(to_cells(transform.apply(np.full((1, 4), 5, np.uint8))))
    assert pass_at_k(test, answers, torch.zeros(len(test))) == {"pass@1": 0.0, "pass@2": 1.0}


def test_of_equally_frequent_answers_the_lower_score_comes_first(tasks: list[arc.Task]) -> None:
    test = make_splits(tasks, num_augmentations=1, seed=3)["test"]
    answers = torch.from_numpy(test.answers.copy())
    answers[:2] = torch.from_numpy(to_cells(np.full((1, 1), 5, np.uint8)))
    score = torch.tensor([2.0, 2.0, 1.0, 1.0])
    assert pass_at_k(test, answers, score)["pass@1"] == 1.0
    assert pass_at_k(test, answers, -score)["pass@1"] == 0.0


def test_votes_are_weighed_by_the_mean_probability(tasks: list[arc.Task]) -> None:
    """As in TRM's evaluation: one very large logit does not outweigh two that are nearly as probable."""
    test = make_splits(tasks, num_augmentations=3, seed=3)["test"]
    answers = torch.from_numpy(test.answers.copy())
    for i in range(4):  # both inputs of two copies are wrong
        transform = Name.parse(test.all_names[test.names[i]]).transform  # type: ignore[index]
        answers[i] = torch.from_numpy(to_cells(transform.apply(np.full((1, 1), 5, np.uint8))))
    negative_logits = torch.tensor([-90.0, -90.0, 3.0, 3.0, -2.0, -2.0, -2.0, -2.0])[None, None]
    restarts = SimpleNamespace(answers=answers[None, None], scores={"halting-logit": negative_logits}, residual=None)
    assert _votes(test, restarts)["pass@1"] == 1.0  # type: ignore[arg-type]


def test_empty_answers_are_the_same_answer(tasks: list[arc.Task]) -> None:
    """Whatever the symmetry of the copy."""
    test = make_splits(tasks, num_augmentations=4, seed=3)["test"]
    answers = torch.full(test.answers.shape, EOS, dtype=torch.uint8)
    answers[0:4] = torch.from_numpy(test.answers[0:4])  # two of five copies are right
    assert pass_at_k(test, answers, torch.zeros(len(test))) == {"pass@1": 0.0, "pass@2": 1.0}


def test_sets_are_joined_with_their_names(tasks: list[arc.Task]) -> None:
    test = make_splits(tasks, num_augmentations=1)["test"]
    both = test + test
    assert both.all_names == test.all_names
    assert both.names is not None
    assert both.names.tolist() == 2 * test.names.tolist()  # type: ignore[union-attr]
    with pytest.raises(DataError, match="different lists of names"):
        test + make_splits(tasks, num_augmentations=2)["test"]


def test_every_puzzle_has_the_same_weight_in_the_loss(tasks: list[arc.Task]) -> None:
    """A small grid has few cells that count, and a large one many."""
    questions = np.stack([to_cells(np.zeros(shape, np.uint8)) for shape in ((1, 1), (29, 29))])
    config = DeepSupervisionConfig(batch_size=2, augment=False, cross_entropy="stablemax")
    objective = DeepSupervision(
        questions, questions, config, init_state=lambda q: torch.zeros(len(q)), augment=ARC.augment, ignored=PAD
    )
    answers = torch.from_numpy(questions).long().masked_fill(torch.from_numpy(questions == PAD), -100)
    logits = torch.zeros(2, SIDE, SIDE, 12)
    logits[0, ..., 2] = 100.0  # the small puzzle is right, but for the ends of its row and column
    output = SimpleNamespace(logits=logits, halt=None, solution=SimpleNamespace(residual=torch.zeros(2)))
    loss, _ = objective._loss(
        torch.nn.Linear(1, 1), {"answers": answers, "questions": answers}, output, answers[:, 0, 0] > 0
    )
    small = (1 * -np.log(101 / 112) + 2 * np.log(112)) / 3
    assert float(loss) == pytest.approx((small + np.log(12)) / 2, rel=1e-5)


def test_drawn_puzzles_hold_their_names_and_what_counts(tasks: list[arc.Task]) -> None:
    data = make_splits(tasks, num_augmentations=1)["train"]
    assert data.names is not None
    config, offsets = DeepSupervisionConfig(batch_size=4), 12 * data.names.astype(np.int64)
    objective = DeepSupervision(
        data.questions,
        data.answers,
        config,
        init_state=lambda q: torch.zeros(len(q)),
        augment=ARC.augment,
        offsets=offsets,
        ignored=PAD,
    )
    drawn = objective._draw(50)
    names = drawn["questions"] // 12
    assert (names == names[:, :1, :1]).all()
    assert set(names[:, 0, 0].tolist()) == set(data.names.tolist())
    assert {-100, EOS} < set(drawn["answers"].flatten().tolist())
    assert PAD not in drawn["answers"]


def test_padding_is_neither_trained_nor_compared(tasks: list[arc.Task]) -> None:
    test = make_splits(tasks, num_augmentations=0)["test"]
    questions, truth = as_tensors(test)
    assert (truth[0] < 0).sum() == (test.answers[0] == PAD).sum()
    answers = torch.from_numpy(test.answers.copy())
    answers[answers == PAD] = 7
    assert exact(answers, truth).all()
    answers[0, 0, 0] = EOS
    assert exact(answers, truth).tolist() == [False, True]
    assert test.names is not None
    assert (questions[0] // 12 == int(test.names[0])).all()


def test_only_used_rows_of_an_embedding_change() -> None:
    p = torch.nn.Parameter(torch.ones(3, 2))
    p.grad = torch.tensor([[0.5, -0.5], [0.0, 0.0], [0.0, 1e-9]])
    SignSGD([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.data, torch.tensor([[0.85, 1.05], [1.0, 1.0], [0.95, 0.85]]))


def test_embeddings_of_names_are_not_averaged() -> None:
    """They are buffers in TRM's code, whose average is over parameters. All other weights are averaged."""
    recipe = tiny_recipe(3)
    model, train = recipe.model.build(), replace(recipe.train, ema_decay=0.9)
    state = TrainingState(model, None, None, train, (), DistributedContext())  # type: ignore[arg-type]
    for _ in range(3):
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        state.optimizer_step()
    averaged = dict(state.trained_model().named_parameters())
    assert model.puzzle_emb.any()
    assert {name for name, weight in model.named_parameters() if torch.equal(weight, averaged[name])} == {"puzzle_emb"}


def tiny_recipe(num_steps: int) -> recipes.PuzzleRecipe:
    network = GridNetworkConfig(
        width=16, hidden=swiglu_hidden(16), num_layers=1, mixing="attention", num_heads=2, grid_positions=False
    )
    recipe = recipes.arc()
    model = TRMConfig(
        update=TRMUpdateConfig(network=network, num_latent=1), num_name_tokens=2, evaluations_per_segment=1
    )
    optimizer = OptimizerConfig(sign_pattern="puzzle_emb", lr=3e-3)
    train = replace(recipe.train, num_steps=num_steps, optimizer=optimizer, warmup_fraction=0.0, ema_decay=0.0)
    supervision = replace(recipe.supervision, batch_size=4, max_segments=2, augment=False)
    return replace(recipe, model=model, train=replace(train, precision="fp32"), supervision=supervision)


def test_names_are_trained_and_kept_from_folder_to_score(tmp_path: Path) -> None:
    """The command line's path: prepare, train, load, evaluate; other names are refused."""
    summary = prepare_arc(toy_folder(tmp_path / "arc"), tmp_path / "data", num_augmentations=2)
    assert {split.name: split.num_puzzles for split in summary.splits} == {"train": 21, "test": 6}
    trained = train_reasoner(tiny_recipe(30), tmp_path / "run", data=tmp_path / "data")
    embedding = trained.model.state_dict()["puzzle_emb"]
    assert embedding.shape == (7, 32)
    assert not embedding[0].any()  # of no puzzle
    assert embedding[1:].any(dim=1).all()
    figures = attractor.evaluate(tmp_path / "run", data=tmp_path / "data", depths=[2], limit=1)["results"]
    assert set(figures) >= {"pass@1", "pass@2"}
    assert figures["num_puzzles"] == 6  # all copies of the first task
    assert not any(name.startswith("interval") for name in figures)  # copies are not independent
    loaded = attractor.load(tmp_path / "run")
    prepare_arc(tmp_path / "arc", tmp_path / "other", num_augmentations=2, seed=5)
    prepare_arc(tmp_path / "arc", tmp_path / "fewer", num_augmentations=1)
    for wrong in ("other", "fewer"):
        with pytest.raises(DataError, match="puzzle names are not the 7 of this model"):
            held_out_puzzles(loaded, tmp_path / wrong, None)  # type: ignore[arg-type]
    (tmp_path / "names.json").write_text(json.dumps(puzzles.read_index(tmp_path / "data")["names"]))
    prepare_arc(tmp_path / "arc", tmp_path / "same", names=tmp_path / "names.json")
    assert isinstance(held_out_puzzles(loaded, tmp_path / "same", None), PuzzleSet)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="learnt in training"):
        loaded.solve("0123\n")  # type: ignore[arg-type]


def test_the_answer_depends_on_the_name() -> None:
    model = tiny_recipe(1).model
    reasoner = replace(model, num_names=3, num_symbols=12, num_classes=12).build().eval()
    with torch.no_grad():
        reasoner.puzzle_emb.normal_()  # type: ignore[union-attr]
        question = torch.randint(12, (1, 4, 4))
        first, second = reasoner(question, depth=1).logits, reasoner(question + 12, depth=1).logits
        both = reasoner(torch.cat([question, question + 12]), depth=1).logits
    assert not torch.allclose(first, second)
    torch.testing.assert_close(both, torch.cat([first, second]))
    with pytest.raises(DataError, match="0 to 35"):
        reasoner(question + 36)


def test_a_published_checkpoint_with_names_is_imported_and_evaluated(tmp_path: Path) -> None:
    """Written in the authors' format, read back, and measured on data with its names."""
    prepare_arc(toy_folder(tmp_path / "arc"), tmp_path / "data", num_augmentations=1)
    model: Any = replace(tiny_recipe(1).model, num_names=5, num_symbols=12, num_classes=12).build()
    with torch.no_grad():
        model.puzzle_emb.normal_()
    export_reasoner(model, tmp_path / "published", num_cells=SIDE**2)
    import_checkpoint(tmp_path / "published", tmp_path / "imported")
    loaded: Any = attractor.load(tmp_path / "imported")
    assert torch.equal(loaded.model.puzzle_emb, model.puzzle_emb)
    figures = attractor.evaluate(loaded, data=tmp_path / "data", depths=[2])["results"]
    assert figures["num_puzzles"] == 4
    prepare_arc(tmp_path / "arc", tmp_path / "more", num_augmentations=2)
    with pytest.raises(DataError, match="7 puzzle names are not the 5 of this model"):
        attractor.evaluate(loaded, data=tmp_path / "more")


def test_the_command_prints_the_next_ones_and_refuses_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = toy_folder(tmp_path / "arc"), tmp_path / "data"
    assert not main(["data", "arc", str(folder), "--out", str(out), "--num-augmentations", "1"])
    assert f"attractor train arc --data {out}" in capsys.readouterr().out
    assert main(["evaluate", "none", "--data", str(out)]) == 2
    (tmp_path / "names.json").write_text('["<blank>", 1]')
    names = ["--names", str(tmp_path / "names.json")]
    assert main(["data", "arc", str(folder), "--out", str(tmp_path / "b"), *names]) == 2
    assert "begins with '<blank>'" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_models_without_cells_for_names_are_refused(tmp_path: Path) -> None:
    prepare_arc(toy_folder(tmp_path / "arc"), tmp_path / "data", num_augmentations=0)
    recipe = tiny_recipe(1)
    with pytest.raises(ConfigError, match="no cells for them"):
        train_reasoner(
            replace(recipe, model=replace(recipe.model, num_name_tokens=0)), tmp_path / "run", data=tmp_path / "data"
        )
    with pytest.raises(ConfigError, match="needs cells that hold them"):
        replace(recipe.model, num_name_tokens=0, num_names=3)
    with pytest.raises(DataError, match="not generated"):
        train_reasoner(recipe, tmp_path / "run")
