"""The recipes of published tasks generate puzzles by the published definitions."""

from dataclasses import replace

import pytest
import torch

from attractor import recipes
from attractor.data.maze import Cell
from attractor.experiment.puzzles import training_puzzles

NAMES = {"": 0, "-trm": 16, "-eqr": 0, "-hrm": 1, "-trm-deq": 16, "-paper": 0, "-transformer": 0}


@pytest.mark.parametrize("task", ["sudoku/extreme", "maze/hard", "maze/unique"])
def test_recipes_have_the_names_of_their_authors(task: str) -> None:
    """An embedding of the width of a cell in the first token, trained with SignSGD at the published rate."""
    for ending, num_tokens in NAMES.items():
        recipe = recipes.get(f"{task}{ending}")
        num_tokens = 0 if (task, ending) == ("maze/unique", "-trm") else num_tokens  # EqR's TRM has none
        assert getattr(recipe.model, "num_name_tokens", 0) == num_tokens
        assert recipe.train.optimizer.sign_pattern == ("puzzle_emb" if num_tokens else "")
        assert recipe.supervision.jacobian_weight == 0
        if num_tokens:
            assert recipe.model.name_width == (0 if num_tokens == 1 else recipe.model.width)  # 0: it fills its token
            assert recipe.train.optimizer.sign_lr == (1e-2 if ending == "-trm-deq" else 1e-4)
            assert recipe.train.optimizer.sign_weight_decay == 1.0


@pytest.mark.parametrize("family", ["trm", "eqr"])
def test_sizes_and_steps_are_those_of_eqr(family: str) -> None:
    """Maze-Unique: one layer of 128 channels and 8 heads, for 100,000 steps. EqR's Sudoku: 50,000 steps; TRM's: 65,000."""
    unique, extreme = recipes.get(f"maze/unique-{family}"), recipes.get(f"sudoku/extreme-{family}")
    network = unique.model.update.network
    assert (network.num_layers, network.width, network.num_heads, network.hidden) == (1, 128, 8, 512)
    assert (unique.train.num_steps, extreme.train.num_steps) == (100_000, 50_000 if family == "eqr" else 65_000)
    mixer = extreme.model.update.network
    assert (mixer.num_cells, mixer.cell_hidden) == ((97, 512) if family == "trm" else (81, 256))


@pytest.mark.parametrize("size", [6, 9])
def test_models_of_recipes_fit_their_puzzles_without_data(size: int) -> None:
    """As ``recipes.get(name).model.build()`` gives them."""
    for ending in NAMES:
        model = recipes.get(f"sudoku/{size}x{size}{ending}").model.build().eval()
        with torch.no_grad():
            model(torch.zeros(1, size, size, dtype=torch.long), depth=1)


def test_arc_has_the_published_names_and_steps() -> None:
    """HRM has one token; of EqR nothing is published, and it has those of TRM."""
    found = {name: recipes.get(name) for name in ("arc", "arc-hrm", "arc-trm-deq", "arc-eqr")}
    assert [recipe.model.num_name_tokens for recipe in found.values()] == [16, 1, 16, 16]
    assert all(recipe.train.num_steps == 518_000 for recipe in found.values())
    assert all(recipe.train.optimizer.sign_lr == 1e-2 for recipe in found.values())


@pytest.mark.parametrize(("name", "size", "steps"), [("maze/hard", 30, (111, 900)), ("maze/unique", 30, (100, 140))])
def test_recipes_generate_published_mazes_by_their_definition(name: str, size: int, steps: tuple[int, int]) -> None:
    """Maze-Hard: 30 to 50 % walls, shortest paths above 110, loops. Maze-Unique: one path, of 100 to 140 steps."""
    recipe = recipes.get(name)
    found = training_puzzles(replace(recipe, data=replace(recipe.data, num_puzzles=6)))
    assert found.questions.shape == (6, size, size)
    num_steps = (found.answers == Cell.PATH).sum(axis=(1, 2)) + 1
    assert ((num_steps >= steps[0]) & (num_steps <= steps[1])).all()
    walls = (found.questions == Cell.WALL).mean(axis=(1, 2))
    junctions = ((size - 1) // 2) ** 2
    if name == "maze/hard":
        assert ((walls > 0.3) & (walls < 0.5)).all()
    else:  # a tree has one edge less than junctions
        assert ((found.questions != Cell.WALL).sum(axis=(1, 2)) == 2 * junctions - 1).all()
    assert not recipe.supervision.augment


@pytest.mark.parametrize("family", recipes.REASONER_FAMILIES)
def test_every_family_makes_a_step_on_mazes_of_random_walls(family: str) -> None:
    """Windows and mazes of any size fit, so no family has cells outside of the grid."""
    model = recipes.maze_walls(family).model.build()
    for size in (5, 8):
        questions = torch.ones(2, size, size, dtype=torch.long)
        output = model(questions, model.init_state(questions))
        assert output.logits.shape == (2, size, size, len(Cell))
