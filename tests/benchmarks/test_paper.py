"""The paper's items run from end to end at a very small scale, are trained once, continue, and say what holds."""

import json
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.command import claim
from benchmarks.paper_items import ITEMS, LANGUAGE, REASONERS, SCALES, language_recipe, reasoner_recipe

from attractor.cli import main
from attractor.config import change, to_dict
from attractor.data import maze, sudoku
from attractor.data.text import Shards
from attractor.errors import DivergedError
from benchmarks import changed_setting, depth, depth_tasks, paper, paper_items

SMALLEST = {
    "model": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 1, "max_evaluations": 4},
    "text": {"length": 16, "batch_size": 2},
    "train": {"num_steps": 8, "precision": "fp32", "log_every": 1, "compile": False},
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A scale of a second, a text of its own, and folders that are not the repository's."""
    import attractor

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paper, "OUT", tmp_path / "results")
    monkeypatch.setattr(paper, "CHARACTERS", 300)
    monkeypatch.setitem(SCALES, "tiny", ("tiny", SMALLEST))
    (tmp_path / "text.txt").write_text("".join(f"{i} and {i * i % 97} make {i + i * i % 97}. " for i in range(2000)))
    attractor.prepare_text([tmp_path / "text.txt"], tmp_path / "tokens", vocab_size=300)
    return {"data": tmp_path / "tokens", "seeds": (0, 1)}


def test_every_side_has_a_recipe_and_every_published_value_a_side() -> None:
    """At every scale; ablations differ from the attractor only in what they are named after."""
    for scale in SCALES:
        recipes = {name: language_recipe(name, scale, 3) for name in LANGUAGE}
        assert {r.train.seed for r in recipes.values()} == {3}
        shapes = {json.dumps(r.model.to_dict(), sort_keys=True, default=str) for r in recipes.values()}
        published = {"770m": "implicit"}.get(scale, "neumann")  # the attractor's own gradient
        assert recipes["attractor"].model.gradient == published
        assert len(shapes) == len(LANGUAGE) - (published == "implicit")
        assert {r.model.hidden_act for r in recipes.values()} == {"relu2"}
    for scale in ("tiny", "140m"):
        assert all(reasoner_recipe(name, task, scale, 0) for name in REASONERS for task in ("sudoku", "maze"))
    for item in ITEMS.values():
        assert set(item.sides) <= set(LANGUAGE) | set(REASONERS)
        assert set(item.columns) <= set(paper.COLUMNS)
        for known in item.published.values():
            assert set(known) <= set(item.sides)
            assert item is ITEMS["figure1"] or all(set(row) <= set(item.columns) for row in known.values())


def test_a_stored_side_is_not_trained_again_and_a_changed_one_is(small, monkeypatch, capsys) -> None:
    """Sides are shared between items; the table has the paper's value, ours with its spread, and the order."""
    trained = []
    real = paper.train_language
    monkeypatch.setattr(
        paper, "train_language", lambda recipe, *a, **k: trained.append(recipe) or real(recipe, *a, **k)
    )
    monkeypatch.setitem(ITEMS, "table1", replace(ITEMS["table1"], sides=("transformer", "attractor")))
    monkeypatch.setitem(ITEMS, "figure4", replace(ITEMS["figure4"], sides=("transformer", "attractor")))
    paper.paper(("table1",), **small)
    assert len(trained) == 4
    paper.paper(("table1", "figure4"), **small)
    assert len(trained) == 4
    table = (paper.OUT / "table1" / "tiny.md").read_text()
    assert "| 18.3 |" in table
    assert "±" in table
    assert "*plain, the same layers once* less *attractor as published*: paper +3.18, here" in table
    rows = json.loads((paper.OUT / "table1" / "tiny.json").read_text())["rows"]
    assert all(len(row["here"]["ppl"]) == 2 for row in rows)
    assert (paper.OUT / "figure4" / "tiny.png").stat().st_size > 1000
    capsys.readouterr()
    assert main(["paper", "table1", "--results", str(paper.OUT)]) == 0
    assert "18.3" in capsys.readouterr().out
    changed = SMALLEST | {"train": SMALLEST["train"] | {"num_steps": 3}}
    monkeypatch.setitem(SCALES, "tiny", ("tiny", changed))
    paper.paper(("table1",), **small | {"seeds": (0,)})
    assert len(trained) == 6


def test_a_paused_side_continues(small, capsys) -> None:
    """And gives what an uninterrupted run gives."""
    small["seeds"] = (0,)
    for _ in range(2):  # a pause after the first step, and the second
        paper.paper(("figure7",), **small, minutes=0)
    assert "paused after 0 of 2" in capsys.readouterr().out
    assert not paper.OUT.exists()
    paper.paper(("figure7",), **small)
    file = paper.OUT / "runs" / "tiny-attractor-0.json"
    cut = json.loads(file.read_text())
    file.unlink()
    paper.paper(("figure7",), **small)
    assert cut["ppl"] == json.loads(file.read_text())["ppl"]
    assert (paper.OUT / "figure7" / "tiny.png").exists()


def test_a_side_that_another_process_trains_is_left_out(small, monkeypatch, capsys) -> None:
    """So that two processes share the work; what one of them has stored, the other does not train."""
    monkeypatch.setitem(ITEMS, "table1", replace(ITEMS["table1"], sides=("transformer", "attractor")))
    small["seeds"] = (0,)
    names: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "claim", lambda folder, name: names.append(name) or claim(folder, name))
        patch.setattr(paper, "_language", lambda *_: {})  # as if it was paused
        paper.paper(("table1",), **small)
    with claim(paper.CHECKPOINTS, names[0]):
        paper.paper(("table1",), **small)
    assert f"{names[0]}: left out; runs/benchmarks/paper-checkpoints: is being written" in capsys.readouterr().out
    assert [file.stem for file in (paper.OUT / "runs").iterdir()] == ["tiny-attractor-0"]
    assert "Not trained yet: plain" in (paper.OUT / "table1" / "tiny.md").read_text()
    language, trained = paper._language, []
    monkeypatch.setattr(paper, "_language", lambda side, *a: trained.append(side) or language(side, *a))
    paper.paper(("table1",), **small)
    assert trained == ["transformer"]


def test_a_run_that_diverges_is_a_result_and_the_others_go_on(small, monkeypatch) -> None:
    real = paper.train_language

    def train(recipe: Any, *args: Any, **settings: Any) -> Any:
        loaded = real(recipe, *args, **settings)
        if recipe.model.start == "zero":
            raise DivergedError("stopped: the loss is not finite.")
        metrics = loaded.path / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        del lines[2]["tokens"]  # as in the report of a skipped step
        metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return loaded

    monkeypatch.setattr(paper, "train_language", train)
    monkeypatch.setitem(ITEMS, "table6", replace(ITEMS["table6"], sides=("zero", "attractor")))
    paper.paper(("table6",), data=small["data"], seeds=(0,))
    table = (paper.OUT / "table6" / "tiny.md").read_text()
    assert "Diverged in training: start: zero (1 of 1 seeds)." in table
    assert "| attractor as published |" in table
    assert "| start: zero |" not in table
    monkeypatch.setattr(paper, "train_language", None)  # what diverged is not trained again
    paper.paper(("table6",), data=small["data"], seeds=(0,))


def test_a_bundle_gives_core_and_core_extended(small, bundle, monkeypatch) -> None:
    """From 60m up; each is the mean over its own tasks, and tasks without a file are named."""
    (bundle / "safety").mkdir()
    (bundle / "safety" / "bbq.jsonl").write_bytes((bundle / "some" / "a.jsonl").read_bytes())
    monkeypatch.setitem(SCALES, "60m", ("tiny", SMALLEST))
    monkeypatch.setitem(ITEMS, "table1", replace(ITEMS["table1"], sides=("transformer",)))
    found = []
    real = paper.core
    monkeypatch.setattr(paper, "core", lambda *a, **k: found.append(real(*a, **k)) or found[-1])
    for scale in ("tiny", "60m"):
        paper.paper(("table1",), scale=scale, bundle=bundle, **small | {"seeds": (0,)})
    assert len(found) == 1
    score = {task.label: 100 * task.centred for task in found[0].tasks}
    [row] = json.loads((paper.OUT / "table1" / "60m.json").read_text())["rows"]
    assert row["here"]["core"] == pytest.approx([(score["choose"] + score["lambada_openai"]) / 2])
    assert row["here"]["core_extended"] == pytest.approx([sum(score.values()) / 3])
    table = (paper.OUT / "table1" / "60m.md").read_text()
    assert "CORE-Extended, %" in table
    assert "Not in the bundle: absent, " in table
    assert "CORE" not in (paper.OUT / "table1" / "tiny.md").read_text()


def test_memory_is_measured_with_the_mean_number_of_iterations(monkeypatch) -> None:
    """Which the looped model draws in training otherwise; also after an error it draws again."""
    draw = torch.poisson

    def failing(*_: object) -> None:
        assert torch.poisson(torch.tensor(7.0)) == 7
        raise MemoryError

    monkeypatch.setattr(paper, "StepBenchmark", failing)
    with pytest.raises(MemoryError):
        paper._memory("tiny")
    assert torch.poisson is draw


def test_reasoners_and_memory_need_no_text(small, monkeypatch) -> None:
    """Puzzles are generated; the memory of the looped model grows, that of the attractor does not."""
    real = paper.reasoner_recipe
    shorter = {"data": {"num_puzzles": 16}, "train": {"num_steps": 2}}
    monkeypatch.setattr(paper, "reasoner_recipe", lambda *names: change(real(*names), shorter))
    monkeypatch.setattr(paper, "NUM_TEST", 10)
    monkeypatch.setitem(ITEMS, "figure2", replace(ITEMS["figure2"], sides=("reasoner-trm", "reasoner-trm-wide")))
    paper.paper(("figure2", "figure5"), seeds=(0,))
    rows = json.loads((paper.OUT / "figure2" / "tiny.json").read_text())["rows"]
    assert all(0 <= row["here"]["maze"][0] <= 100 for row in rows)
    ours, looped = (row["here"] for row in json.loads((paper.OUT / "figure5" / "tiny.json").read_text())["rows"])
    assert ours["memory_64"][0] < 1.05 * ours["memory_16"][0]
    assert looped["memory_64"][0] > 2 * looped["memory_16"][0]
    assert (paper.OUT / "figure2" / "tiny.png").exists()


def test_without_data_the_text_is_pythons_standard_library(tmp_path, monkeypatch) -> None:
    """A part of it is held out, and it is prepared once."""
    monkeypatch.chdir(tmp_path)
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40]:
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    folder = paper._default_text()
    assert Shards(folder, "train").num_tokens > Shards(folder, "val").num_tokens > 0
    before = (folder / "index.json").stat().st_mtime_ns
    assert paper._default_text() == folder
    assert (folder / "index.json").stat().st_mtime_ns == before


def test_orders_say_whether_the_difference_has_the_sign_of_the_papers() -> None:
    """In every seed; otherwise it is not resolved."""
    item = paper_items.Item("", ("a", "b"), ("ppl",))
    known = {"a": {"ppl": 1.0}, "b": {"ppl": 2.0}}
    names = {"a": "A", "b": "B"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "LABELS", names)
        for ours, verdict in (([2.0, 2.1], "holds"), ([0.5, 0.6], "does not hold"), ([0.5, 2.0], "not resolved")):
            runs = {"a": [{"seed": 0, "ppl": 1.0}, {"seed": 1, "ppl": 1.0}]}
            runs["b"] = [{"seed": seed, "ppl": ppl} for seed, ppl in enumerate(ours)]
            line = paper._orders(runs, known, item)
            assert verdict in line
        both, only = [{"seed": 0, "ppl": 1.0}, {"seed": 1, "ppl": 11.0}], [{"seed": 1, "ppl": 10.0}]
        assert "here +1.00 to +1.00 (seeds: 1): holds" in paper._orders({"a": only, "b": both}, known, item)
        assert "here -1.00 to -1.00 (seeds: 1): does not hold" in paper._orders({"a": both, "b": only}, known, item)


def test_without_the_repositorys_results_the_command_says_what_to_do(tmp_path, monkeypatch, capsys) -> None:
    """As after an installation from a wheel; and of an item that is not stored it says how to make it."""
    monkeypatch.chdir(tmp_path)
    assert main(["paper", "table4"]) == 2
    assert "not part of the installed package" in capsys.readouterr().err
    assert main(["paper", "table4", "--results", str(tmp_path)]) == 2
    assert "python -m benchmarks.paper table4" in capsys.readouterr().err


def rounds_of_digits(question: Any) -> list[int]:
    """In which round each blank of a 4 × 4 Sudoku has one digit left by its row, column and box; 0 for never."""
    grid, rounds = [int(digit) for digit in question], [0] * 16
    for number in range(1, 17):
        found = {}
        for cell in (i for i, digit in enumerate(grid) if not digit):
            row, column = divmod(cell, 4)
            near = [i for i in range(16) if i // 4 == row or i % 4 == column]
            near += [i for i in range(16) if (i // 8, i % 4 // 2) == (row // 2, column // 2)]
            left = {1, 2, 3, 4} - {grid[i] for i in near}
            if len(left) == 1:
                found[cell] = left.pop()
        for cell, digit in found.items():
            grid[cell], rounds[cell] = digit, number
    return rounds


@pytest.mark.parametrize("task", depth.TASKS)
def test_answers_of_generated_tasks_are_right(task: str) -> None:
    """By the definition, token by token."""
    import numpy as np

    make, limit, longer, _ = depth.TASKS[task]
    tokens, answers, difficulty = make(np.random.default_rng(0), 32, longer)
    assert difficulty[answers != depth.IGNORED].max() > limit or task in ("addition", "sudoku")
    for row, given, hard in zip(tokens, answers, difficulty, strict=True):
        if task == "pointers":
            after = {int(k): int(v) - 12 for k, v in row[:24].reshape(12, 2)}
            for symbol, end, hops in zip(row[24:] - 24, given[24:], hard[24:], strict=True):
                for _ in range(hops):
                    symbol, last = after[int(symbol)], symbol
                    assert symbol != last
                assert symbol == end == after[int(symbol)]
        elif task == "addition":
            a, b = (int("".join(str(d) for d in part[::-1])) for part in (row[::2], row[1::2] - 10))
            assert [int(d) for d in reversed(str(a + b)[-longer:].zfill(longer))] == given[1::2].tolist()
        elif task == "sudoku":
            followed, _ = sudoku.deduce(row[None, :16].reshape(1, 4, 4).astype(np.uint8))
            asked = given[16:] != depth.IGNORED
            assert (row[16:] == row[:16]).all()
            assert not row[:16][asked].any()
            assert (1 + given[16:] == followed.reshape(-1))[asked].all()
            assert rounds_of_digits(row[:16]) == hard[16:].tolist()
        elif task == "maze":
            question = row[None, :81].reshape(1, 9, 9).astype(np.uint8)
            path = np.where(given[81:].reshape(1, 9, 9) == 1, int(maze.Cell.PATH), question).astype(np.uint8)
            assert maze.valid_and_shortest(question, path).all()
            assert (hard[81:][given[81:] != depth.IGNORED] == 1 + (path == maze.Cell.PATH).sum()).all()
        else:
            product = np.arange(5)
            for factor, answer in zip(row, given, strict=True):
                product = product[depth_tasks.GENERATORS[factor]]
                assert (depth_tasks.PERMUTATIONS[answer] == product).all()


def test_a_depth_run_is_measured_by_difficulty(tmp_path, monkeypatch) -> None:
    """In training lengths and beyond, and not trained again."""
    monkeypatch.setattr(depth, "OUT", tmp_path)
    depth.run(("addition",), ("attractor", "plain"), (0,), num_steps=2)
    found = json.loads((tmp_path / "addition-attractor-0.json").read_text())
    assert found["longer"]["evaluations"] >= 1
    assert max(map(int, found["longer"]["by_difficulty"])) > 8
    before = (tmp_path / "addition-plain-0.json").stat().st_mtime_ns
    depth.run(("addition",), ("plain",), (0,), num_steps=2)
    assert (tmp_path / "addition-plain-0.json").stat().st_mtime_ns == before
    real = depth.train

    def diverges(model: Any, *args: Any, **settings: Any) -> Any:
        if model.config.num_hidden_layers == 8:
            raise DivergedError("the loss jumps.")
        return real(model, *args, **settings)

    monkeypatch.setattr(depth, "train", diverges)
    depth.run(("addition",), ("deeper", "deq"), (0,), num_steps=2)  # a result too: the other sides go on
    depth.show()
    assert (tmp_path / "addition.png").exists()
    rows = (tmp_path / "summary.md").read_text().splitlines()
    assert "| addition | deeper | 1 | diverged | | | | |" in rows
    assert len(rows) == 6


def test_a_setting_that_did_not_exist_when_a_run_was_stored_had_its_default() -> None:
    """A run is the same if the recipe has the default now; a sentence names every other difference."""
    recipe = language_recipe("attractor", "tiny", 0)
    stored: Any = json.loads(json.dumps(to_dict(recipe)))

    def sentence(change: Any) -> str:
        """About a stored run without some settings."""
        old = json.loads(json.dumps(stored))
        change(old)
        return changed_setting({"recipe": old}, {"recipe": stored}, {"recipe": recipe})

    assert sentence(lambda old: None) == ""
    assert sentence(lambda old: old["text"].pop("distillation")) == ""
    assert sentence(lambda old: old["train"]["guard"].pop("policy")) == ""
    sets = f"{recipe.model.injection!r}, and was 'not there'."
    assert sentence(lambda old: old["model"].pop("injection")) == f"recipe.model.injection is {sets}"
    assert "recipe.model.type is" in sentence(lambda old: old["model"].pop("type"))
    assert sentence(lambda old: old["text"].update(seed=7)) == "recipe.text.seed is 0, and was 7."
    assert sentence(lambda old: old["text"].update(gone=1)) == "recipe.text.gone is 'not there', and was 1."
    assert changed_setting({}, {"size": 1}, {"size": 1}) == "size is 1, and was 'not there'."


def test_the_stored_runs_are_those_of_todays_recipes(monkeypatch) -> None:
    """So that the commands that they hold train nothing again."""
    stored = sorted((Path(depth.__file__).parents[1] / "results" / "depth").glob("*.json"))
    assert stored
    monkeypatch.setattr(depth, "OUT", stored[0].parent)
    monkeypatch.setattr(depth, "train", lambda *a, **k: pytest.fail("a stored run would be trained again"))
    for file in stored:
        task, side, seed = file.stem.rsplit("-", 2)
        num_steps = int(json.loads(file.read_text())["command"].partition("--num-steps ")[2].split()[0])
        depth.run((task,), (side,), (int(seed),), num_steps=num_steps)  # type: ignore[arg-type]
