"""Puzzles: mazes and Sudokus for the attractor reasoner and its baselines, under one loop.

``maze`` is the demonstration. ``sudoku/6x6`` and ``sudoku/9x9`` are for processors and draw their own puzzles;
``sudoku/extreme`` and ``maze/hard`` are the published tasks at the published sizes, for a GPU and data of one's own.
"""

from dataclasses import dataclass, field, replace

from attractor.config import require_whole
from attractor.data.mazes import Cell
from attractor.errors import ConfigError
from attractor.models.reasoning import AttractorReasonerConfig
from attractor.nn import CellsConfig, RecursionConfig
from attractor.optim import OptimizerConfig
from attractor.train import DeepSupervisionConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class MazeDataConfig:
    """``num_mazes`` perfect mazes of ``size`` × ``size`` cells to learn from.

    In ``corner_share`` of them S and G are in opposite corners: long paths teach the answer to travel far. ``winding_share`` of
    these are winding mazes, with the longest paths of all: answers then rest sooner and more often, not more exactly.
    """

    num_mazes: int = 1000
    size: int = 11
    corner_share: float = 0.9
    winding_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole(self, 1, "num_mazes")
        for name in ("corner_share", "winding_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"MazeDataConfig({name}={getattr(self, name)!r}): the share must lie in [0, 1].")


@dataclass(frozen=True, kw_only=True)
class SudokuDataConfig:
    """``num_puzzles`` Sudokus of ``size`` digits to learn from, with ``clues`` digits given (null: as few as possible)."""

    num_puzzles: int = 1000
    size: int = 9
    clues: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole(self, 1, "num_puzzles", "size")


@dataclass(frozen=True, kw_only=True)
class PuzzleRecipe:
    """Everything about a run on puzzles. ``data`` is what is drawn when no folder of puzzles is given.

    ``compile`` compiles the update network: worth its minute on a GPU and in runs of more than a few minutes.
    """

    model: AttractorReasonerConfig
    data: MazeDataConfig | SudokuDataConfig
    supervision: DeepSupervisionConfig = field(default_factory=DeepSupervisionConfig)
    train: TrainConfig
    compile: bool = False

    @property
    def kind(self) -> str:
        """What puzzles it is about."""
        return "maze" if isinstance(self.data, MazeDataConfig) else "sudoku"


def maze(*, minutes: float = 4.0, seed: int = 0) -> PuzzleRecipe:
    """The demonstration: 1,000 mazes of 11×11, four minutes on two CPU cores."""
    return PuzzleRecipe(
        model=AttractorReasonerConfig(obstacles=(int(Cell.WALL),), damping=0.7, noise=0.1, segment=8, tracked=7),
        data=MazeDataConfig(seed=seed),
        supervision=DeepSupervisionConfig(batch_size=64, max_segments=16),
        train=TrainConfig(seconds=60 * minutes, seed=seed),
    )


def maze_control(*, num_steps: int, seed: int = 0) -> PuzzleRecipe:
    """A plain unrolled loop for comparison: from a zero state, undamped, without noise, as many steps as the run it controls."""
    recipe = maze(seed=seed)
    return replace(
        recipe,
        model=replace(recipe.model, random_start=False, noise=0.0, damping=1.0),
        train=replace(recipe.train, seconds=None, num_steps=num_steps),
    )


def sudoku(size: int, *, minutes: float, width: int, clues: int | None, seed: int = 0) -> PuzzleRecipe:
    """Sudokus of ``size`` digits on a processor."""
    cells = CellsConfig(width=width, hidden=2 * width, cell_hidden=width, num_cells=size**2)
    return PuzzleRecipe(
        model=AttractorReasonerConfig(
            num_symbols=size + 1,
            num_classes=size + 1,
            update=RecursionConfig(cells=cells),
            segment=2,
            tracked=1,
        ),
        data=SudokuDataConfig(size=size, clues=clues, seed=seed),
        supervision=DeepSupervisionConfig(batch_size=128, max_segments=6),
        train=TrainConfig(
            seconds=60 * minutes,
            optimizer=OptimizerConfig(lr=2e-3),
            precision="bf16",
            seed=seed,
        ),
    )
