"""Puzzles: mazes and Sudokus for the attractor reasoner and its baselines, under one loop.

``maze`` is the demonstration. ``sudoku/6x6`` and ``sudoku/9x9`` are for processors and draw their own puzzles;
``sudoku/extreme`` and ``maze/hard`` are the published tasks at the published sizes, for a GPU and data of one's own.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from attractor.config import require_whole, suggestion
from attractor.data.maze import Cell
from attractor.errors import ConfigError
from attractor.models.reasoning import AttractorReasonerConfig, HRMConfig, TransformerConfig, TRMConfig
from attractor.nn import GridNetworkConfig, TRMUpdateConfig
from attractor.objectives import DeepSupervisionConfig
from attractor.optim import OptimizerConfig
from attractor.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class MazeDataConfig:
    """``num_mazes`` perfect mazes of ``size`` × ``size`` cells to learn from.

    In ``corner_share`` of them S and G are in opposite corners: long paths teach the answer to travel far. ``winding_share`` of
    these are winding mazes, with the longest paths of all: answers then rest sooner and more often, not more exactly.
    """

    num_mazes: int = 1000
    size: int = 11
    corner_fraction: float = 0.9
    dfs_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole(self, 1, "num_mazes")
        for name in ("corner_fraction", "dfs_fraction"):
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


ReasonerModelConfig = AttractorReasonerConfig | TRMConfig | HRMConfig | TransformerConfig


@dataclass(frozen=True, kw_only=True)
class PuzzleRecipe:
    """Everything about a run on puzzles. ``data`` is what is drawn when no folder of puzzles is given."""

    model: ReasonerModelConfig
    data: MazeDataConfig | SudokuDataConfig
    supervision: DeepSupervisionConfig = field(default_factory=DeepSupervisionConfig)
    train: TrainConfig

    def __post_init__(self) -> None:
        if self.train.accumulate > 1:
            raise ConfigError(
                "train.accumulate: puzzles are carried on from batch to batch, so that adding up batches would be no larger batch; "
                "raise supervision.batch_size instead, on more devices if need be."
            )
        halting = getattr(self.model, "halting", not isinstance(self.model, TransformerConfig))
        if self.supervision.replace_halted and not halting:
            raise ConfigError("supervision.replace_halted needs a halting head; set model.halting=true, or leave it out.")

    @property
    def kind(self) -> str:
        """What puzzles it is about."""
        return "maze" if isinstance(self.data, MazeDataConfig) else "sudoku"


def fitted(recipe: PuzzleRecipe, *, num_cells: int, num_symbols: int, num_classes: int) -> PuzzleRecipe:
    """Return the recipe with a model for such puzzles."""
    changes: dict[str, Any] = {"num_symbols": num_symbols, "num_classes": num_classes}
    model = recipe.model
    if isinstance(model, HRMConfig | TransformerConfig):
        changes["network"] = replace(model.network, num_cells=num_cells)
    elif isinstance(model.update, TRMUpdateConfig):
        changes["update"] = replace(model.update, network=replace(model.update.network, num_cells=num_cells))
    return replace(recipe, model=replace(model, **changes))


def maze(*, minutes: float = 4.0, seed: int = 0) -> PuzzleRecipe:
    """The demonstration: 1,000 mazes of 11×11, four minutes on two CPU cores."""
    return PuzzleRecipe(
        model=AttractorReasonerConfig(
            obstacles=(int(Cell.WALL),), damping=0.7, noise=0.1, evaluations_per_segment=8, backprop_steps=7
        ),
        data=MazeDataConfig(seed=seed),
        supervision=DeepSupervisionConfig(batch_size=64, max_segments=16),
        train=TrainConfig(seconds=60 * minutes, seed=seed),
    )


def maze_control(*, num_steps: int, seed: int = 0) -> PuzzleRecipe:
    """A plain unrolled loop for comparison: from a zero state, undamped, without noise, as many steps as the run it controls."""
    recipe = maze(seed=seed)
    assert isinstance(recipe.model, AttractorReasonerConfig)
    return replace(
        recipe,
        model=replace(recipe.model, random_init=False, noise=0.0, damping=1.0),
        train=replace(recipe.train, seconds=None, num_steps=num_steps),
    )


MINUTES = {6: 6, 9: 60}


def sudoku(size: int, family: str = "attractor", *, seed: int = 0) -> PuzzleRecipe:
    """Sudokus of 6 or 9 digits on a processor: six minutes, or an hour, of two cores.

    All families have layers of one kind and width and the same steps; only what is iterated differs. ``trm`` has the attractor's
    network; ``hrm`` two of them; ``transformer`` four of them, one after another, each used once.
    """
    if size not in MINUTES:
        raise ConfigError(f"there is no recipe for Sudokus of {size} digits; choose 6 or 9.")
    cells = GridNetworkConfig(width=128, hidden=256, cell_hidden=128, num_cells=size**2)
    return PuzzleRecipe(
        model=_model(family, cells, size + 1, size + 1, evaluations_per_segment=2, num_latent=3),
        data=SudokuDataConfig(size=size, clues={6: 10}.get(size), num_puzzles={6: 1000}.get(size, 10_000), seed=seed),
        supervision=_supervision(family, batch_size=64, max_segments=6),
        train=TrainConfig(
            seconds=60.0 * MINUTES[size],
            optimizer=OptimizerConfig(lr=2e-3),
            precision="bf16",
            log_every=50,
            seed=seed,
        ),
    )


WIDTHS_27M = {"sudoku": 1216, "maze": 1024}  # at which two layers have the weights of HRM


def published(task: str, family: str = "attractor", *, width: int = 512, seed: int = 0) -> PuzzleRecipe:
    """The published tasks at the published sizes and steps (TRM, arXiv:2510.04871; EqR, arXiv:2605.21488), for one GPU.

    ``sudoku`` mixes its 81 cells by an MLP (5M weights), ``maze`` its 900 by attention (7M); HRM and the Transformer have 27M and
    attention. At the ``width`` of ``WIDTHS_27M`` attractor and TRM have as many: wider in all proportions, with more heads of the
    same size, and not deeper, which TRM's authors found to hurt. Give ``--data``, 1,000 puzzles of the published sets; else as many
    are drawn.

    Not theirs: AdamW where they have AdamATan2, gradients clipped at 1, and for HRM the settings of TRM. The attractor's positions
    count rows and columns, the baselines' cells in reading order.
    """
    mixing = "mixer" if task == "sudoku" and family in ("attractor", "trm") else "attention"
    cells = GridNetworkConfig(
        width=width,
        hidden=3 * width,
        cell_hidden=256,
        num_heads=width // 64,
        mixing=mixing,
        grid_positions=family == "attractor",
    )
    num_symbols, num_classes = (10, 10) if task == "sudoku" else (len(Cell) - 1, len(Cell))
    return PuzzleRecipe(
        model=_model(
            family,
            cells,
            num_symbols,
            num_classes,
            evaluations_per_segment=3,
            num_latent=6 if task == "sudoku" else 4,
            halting=True,
        ),
        data=SudokuDataConfig(seed=seed) if task == "sudoku" else MazeDataConfig(size=31, seed=seed),
        supervision=_supervision(family, batch_size=768, max_segments=16, replace_halted=True, cross_entropy="stablemax"),
        train=TrainConfig(
            num_steps=65_000,
            optimizer=OptimizerConfig(lr=1e-4, weight_decay=1.0),
            warmup_fraction=2000 / 65_000,
            cooldown_fraction=0.0,
            ema_decay=0.999,
            precision="bf16",
            log_every=50,
            seed=seed,
        ),
    )


FAMILIES = ("attractor", "trm", "hrm", "transformer")


def _model(
    family: str,
    cells: GridNetworkConfig,
    num_symbols: int,
    num_classes: int,
    *,
    evaluations_per_segment: int,
    num_latent: int,
    halting: bool = False,
) -> ReasonerModelConfig:
    counts: Any = {"num_symbols": num_symbols, "num_classes": num_classes}
    recursion = TRMUpdateConfig(network=cells, num_latent=num_latent)
    if family == "attractor":
        return AttractorReasonerConfig(
            update=recursion, evaluations_per_segment=evaluations_per_segment, backprop_steps=1, halting=halting, **counts
        )
    if family == "trm":
        return TRMConfig(update=recursion, evaluations_per_segment=evaluations_per_segment, **counts)
    wide = cells.width >= 512
    if family == "hrm":
        return HRMConfig(network=replace(cells, num_layers=4 if wide else 2), evaluations_per_segment=2, **counts)
    if family == "transformer":
        return TransformerConfig(network=replace(cells, num_layers=8), halting=halting, **counts)
    raise ConfigError(f"there is no family {family!r}; {suggestion(family, FAMILIES)}")


def _supervision(family: str, *, max_segments: int, **settings: Any) -> DeepSupervisionConfig:
    """A Transformer has no state to carry: each of its questions is answered once."""
    return DeepSupervisionConfig(max_segments=1 if family == "transformer" else max_segments, **settings)
