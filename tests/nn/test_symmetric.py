"""The symmetric update: it commutes with the symmetries of Sudoku, and with nothing else."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attractor import recipes
from attractor.data.sudoku import BOXES
from attractor.errors import ConfigError, DataError
from attractor.models.reasoning import AttractorReasoner, AttractorReasonerConfig
from attractor.nn import SymmetricUpdateConfig
from attractor.testing import UpdateConformance


def reasoner(size: int, **changes) -> AttractorReasoner:
    torch.manual_seed(0)
    height, width = BOXES[size]
    update = SymmetricUpdateConfig(width=8, hidden=12, num_layers=2, box_height=height, box_width=width)
    config = AttractorReasonerConfig(num_symbols=size + 1, num_classes=size + 1, update=update, **changes)
    return config.build().eval()


def lines(size: int, group: int, seed: int) -> Tensor:
    """A random order of lines that keeps the lines of a group together."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randperm(size // group, generator=generator)
    return torch.cat([g * group + torch.randperm(group, generator=generator) for g in groups])


def questions(size: int, generator: torch.Generator, num: int = 2) -> Tensor:
    """Grids with a digit in a fifth of the cells."""
    grids = torch.randint(1, size + 1, (num, size, size), generator=generator)
    return grids * (torch.rand(grids.shape, generator=generator) < 0.2)


def moved(grid: Tensor, rows: Tensor, columns: Tensor, *, transpose: bool) -> Tensor:
    grid = grid[:, rows][:, :, columns]
    return grid.transpose(1, 2) if transpose else grid


def difference(size: int, rows: Tensor, columns: Tensor, *, transpose: bool = False, seed: int = 0) -> float:
    """The largest difference between the logits of a moved puzzle and the moved logits, with digits renamed."""
    model, generator = reasoner(size, halting=True), torch.Generator().manual_seed(seed)
    given = questions(size, generator)
    digits = torch.randperm(size, generator=generator)  # the old digit at each new one
    names = torch.cat([torch.zeros(1, dtype=torch.long), 1 + digits.argsort()])
    state = model.init_state(given, generator)
    torch.nn.init.normal_(model.halt.weight)
    other = moved(state, rows, columns, transpose=transpose)
    other = other.unflatten(-1, (size, -1))[:, :, :, digits].flatten(-2)
    with torch.no_grad():
        output = model(given, state, depth=4)
        changed = model(names[moved(given, rows, columns, transpose=transpose)], other, depth=4)
    expected = moved(output.logits, rows, columns, transpose=transpose)
    halting = (changed.halt - output.halt).abs().max()
    return float(torch.maximum(halting, (changed.logits[..., 1:] - expected[..., 1 + digits]).abs().max()))


@pytest.mark.parametrize("size", BOXES)
@pytest.mark.parametrize("seed", range(3))
def test_it_commutes_with_every_symmetry_of_sudoku(size: int, seed: int) -> None:
    """Digits, rows of a band, bands, columns of a stack, stacks; with square boxes, transposition."""
    height, width = BOXES[size]
    rows, columns = lines(size, height, seed), lines(size, width, seed + 100)
    for transpose in (False, True) if height == width else (False,):
        assert difference(size, rows, columns, transpose=transpose, seed=seed) < 1e-5


def test_it_commutes_with_nothing_else() -> None:
    """Exchanging rows of two bands, or transposing boxes that are not square, changes the answer."""
    same, swapped = torch.arange(9), torch.tensor([3, 1, 2, 0, 4, 5, 6, 7, 8])
    assert difference(9, swapped, same) > 1e-2
    assert difference(6, torch.arange(6), torch.arange(6), transpose=True) > 1e-2


class TestSymmetricUpdate(UpdateConformance):
    def make_update(self):
        model = reasoner(4)
        x = model.embedding(questions(4, torch.Generator().manual_seed(0), num=3))
        return lambda y: model.update(y, x)

    def make_state(self):
        return torch.randn(3, 4, 4, 32, generator=torch.Generator().manual_seed(1))


def test_a_blank_is_never_an_answer() -> None:
    """Its probability is zero, and the loss of an answer without blanks is finite."""
    logits = reasoner(4).solve(torch.zeros(1, 4, 4, dtype=torch.long), depth=2).logits
    assert logits.shape == (1, 4, 4, 5)
    assert (logits.softmax(-1)[..., 0] == 0).all()
    assert torch.nn.functional.cross_entropy(logits.flatten(0, 2), torch.ones(16, dtype=torch.long)).isfinite()


def test_other_grids_and_symbols_are_refused() -> None:
    """A grid of another size, and a number of symbols that its boxes do not have."""
    with pytest.raises(DataError, match=r"9 × 9.*4 digits"):
        reasoner(4).solve(torch.zeros(1, 9, 9, dtype=torch.long), depth=1)
    with pytest.raises(ConfigError, match="needs 10"):
        AttractorReasonerConfig(update=SymmetricUpdateConfig())
    with pytest.raises(ConfigError, match="box_width"):
        SymmetricUpdateConfig(box_width=0)


def test_a_recipe_takes_the_boxes_of_its_puzzles() -> None:
    """Sudokus of six digits have boxes of 2 × 3 cells; mazes have none."""
    recipe = recipes.get("sudoku/hardest")
    fitted = recipes.fit_to_puzzles(recipe, num_cells=36, num_symbols=7, num_classes=7)
    assert (fitted.model.update.box_height, fitted.model.update.box_width) == (2, 3)
    with pytest.raises(ConfigError, match="symmetric update is for Sudokus"):
        replace(recipe, data=recipes.MazeDataConfig())
