"""Small trained puzzle models that come with the package, for use seconds after installation and without a network."""

from contextlib import suppress
from pathlib import Path

import attractor
from attractor.data import PUZZLES
from attractor.errors import ConfigError, DataError
from attractor.experiment.solve import Puzzles, locate_puzzles

FOLDER = (
    Path(attractor.__file__).parent / "pretrained_models"
)  # a folder for each: a checkpoint for inference and its card


def pretrained() -> list[str]:
    """Return the names of the models, which :func:`attractor.load` and every command take."""
    return sorted(folder.name for folder in FOLDER.iterdir() if (folder / "run.json").is_file())


def pretrained_for(puzzles: Puzzles) -> str:
    """Return the name of the model that was trained on puzzles of this kind and size.

    Parameters
    ----------
    puzzles
        See :func:`attractor.experiment.solve.solve_puzzles`. The first one decides.

    Raises
    ------
    DataError
        If they are no puzzles of any kind, or have no unique answer.
    ConfigError
        If no model is for them.
    """
    reasons = {}
    for kind, puzzle in PUZZLES.items():
        try:
            grid = locate_puzzles(puzzle, puzzles)[0].grid
            puzzle.check(grid)
        except DataError as error:
            reasons[kind] = error
            continue
        name = kind if puzzle.box_shape(len(grid)) is None else f"{kind}-{len(grid)}x{len(grid)}"
        if name not in pretrained():
            raise ConfigError(f"no model of the package is for {name}; give a checkpoint, or one of {_known()}.")
        return name
    raise reasons[_likely_kind(puzzles)]


def _likely_kind(puzzles: Puzzles) -> str:
    """Return the kind whose error helps: a maze has S and G, and a Sudoku has digits or dots."""
    text = str(puzzles)
    with suppress(OSError, ValueError):  # too long for a name, or no file
        text = Path(text).read_bytes()[:4096].decode(errors="replace") if Path(text).is_file() else text
    return "sudoku" if any(c.isdigit() or c == "." for c in text) and not {"S", "G"} <= set(text) else "maze"


def _known() -> str:
    return ", ".join(pretrained())
