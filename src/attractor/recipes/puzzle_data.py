"""Which puzzles a recipe generates for training."""

from attractor.config import config_class, require_whole
from attractor.data.arc import SIDE
from attractor.errors import ConfigError


@config_class
class MazeDataConfig:
    """Mazes to generate for training.

    Attributes
    ----------
    num_puzzles
        The number of mazes.
    style
        ``"perfect"``, with one path between any two cells; ``"unique"``, those of Maze-Unique; or ``"walls"``, random
        walls with loops.
    size
        Their height and width in cells.
    min_path, max_path
        The fewest and the most steps from S to G.
    corner_fraction
        The share of perfect mazes with S and G in opposite corners. Training on long paths helps with larger mazes.
    dfs_fraction
        The share of these corner mazes that depth-first search makes, which gives the longest paths. Solves then
        converge sooner and more often; as many answers are right.
    seed
        The seed of the mazes.
    """

    kind = "maze"

    num_puzzles: int = 1000
    style: str = "perfect"
    size: int = 11
    min_path: int = 1
    max_path: int | None = None
    corner_fraction: float = 0.9
    dfs_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole(self, 1, "num_puzzles")
        for name in ("corner_fraction", "dfs_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"MazeDataConfig({name}={getattr(self, name)!r}): give a fraction from 0 to 1.")


@config_class
class SudokuDataConfig:
    """Sudokus to generate for training.

    Attributes
    ----------
    num_puzzles
        The number of Sudokus.
    size
        The number of digits: 4, 6 or 9.
    clues
        Given digits of each. None: as few as possible.
    seed
        The seed of the Sudokus.
    """

    kind = "sudoku"

    num_puzzles: int = 1000
    size: int = 9
    clues: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole(self, 1, "num_puzzles", "size")


@config_class
class ArcDataConfig:
    """Tasks of ARC-AGI, from a folder that ``attractor data arc`` writes."""

    kind = "arc"
    size = SIDE
