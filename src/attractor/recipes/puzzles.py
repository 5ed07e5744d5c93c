"""Puzzles: mazes and Sudokus for the attractor reasoner and its baselines.

``maze`` is the demonstration. ``sudoku/6x6``, ``sudoku/9x9`` and ``maze/walls`` are for CPUs and generate their own
puzzles. ``sudoku/extreme``, ``maze/hard``, ``maze/unique`` and ``arc`` are published tasks at the published sizes, for GPUs.
"""

from dataclasses import field, replace
from math import isqrt
from typing import Any

from attractor.config import config_class, suggestion
from attractor.data import PUZZLES
from attractor.data.arc import ARC, SIDE
from attractor.data.maze import Cell
from attractor.data.sudoku.rules import BOXES
from attractor.errors import ConfigError
from attractor.models.reasoning import (
    AttractorReasonerConfig,
    EqRConfig,
    HRMConfig,
    TransformerConfig,
    TRMConfig,
    TRMDEQConfig,
)
from attractor.nn import GatedConvolutionUpdateConfig, GridNetworkConfig, SymmetricUpdateConfig, TRMUpdateConfig
from attractor.nn.grid import swiglu_hidden
from attractor.objectives import DeepSupervisionConfig
from attractor.optim import OptimizerConfig
from attractor.recipes.puzzle_data import ArcDataConfig, MazeDataConfig, SudokuDataConfig
from attractor.training import TrainConfig

ReasonerModelConfig = AttractorReasonerConfig | TRMConfig | EqRConfig | HRMConfig | TRMDEQConfig | TransformerConfig


@config_class
class PuzzleRecipe:
    """All settings of a run on puzzles. ``data`` describes the puzzles to generate if no folder of puzzles is given."""

    model: ReasonerModelConfig
    data: MazeDataConfig | SudokuDataConfig | ArcDataConfig
    supervision: DeepSupervisionConfig = field(default_factory=DeepSupervisionConfig)
    train: TrainConfig

    def __post_init__(self) -> None:
        if self.train.accumulate > 1:
            raise ConfigError(
                "train.accumulate: puzzles stay from batch to batch, so accumulated batches are not one larger batch; "
                "raise supervision.batch_size instead, or use more devices."
            )
        if isinstance(getattr(self.model, "update", None), SymmetricUpdateConfig) and self.data.kind != "sudoku":
            raise ConfigError(f"model.update: a symmetric update is for Sudokus; a {self.data.kind} needs another one.")
        if self.supervision.max_revealed and self.kind != "sudoku":
            raise ConfigError(f"supervision.max_revealed fills blank cells of Sudokus; leave it at 0 for {self.kind}.")
        if self.supervision.windows:
            if self.kind != "maze":
                raise ConfigError(f"supervision.windows are windows of mazes; leave it empty for {self.kind}.")
            if self.train.guard.loss_spike or self.train.guard.gradient_spike:
                raise ConfigError(
                    "supervision.windows: the loss jumps between windows; leave the guard's spikes unset."
                )
        if self.supervision.auxiliary_weight and not (
            self.kind == "maze" and isinstance(self.model, AttractorReasonerConfig)
        ):
            raise ConfigError("supervision.auxiliary_weight is for an attractor on mazes; leave it at 0 otherwise.")
        halting = getattr(self.model, "halting", not isinstance(self.model, TransformerConfig))
        if self.supervision.replace_halted and not halting:
            raise ConfigError("supervision.replace_halted needs a halting head; set model.halting=true.")

    @property
    def kind(self) -> str:
        """The kind of puzzles."""
        return self.data.kind


def fit_to_puzzles(
    recipe: PuzzleRecipe, *, num_cells: int, num_symbols: int, num_classes: int, num_names: int = 0
) -> PuzzleRecipe:
    """Return the recipe with the model's symbols, classes, cells and puzzle names set to those of the puzzles."""
    changes: dict[str, Any] = {"num_symbols": num_symbols, "num_classes": num_classes}
    model = recipe.model
    if isinstance(model, AttractorReasonerConfig):
        num_auxiliary = PUZZLES[recipe.kind].num_auxiliary_classes if recipe.supervision.auxiliary_weight else 0
        changes["num_auxiliary_classes"] = num_auxiliary
    if num_names:
        if not getattr(model, "num_name_tokens", 0):
            raise ConfigError("puzzles have names, and this model has no cells for them; set model.num_name_tokens.")
        changes["num_names"] = num_names
    num_cells += getattr(model, "num_name_tokens", 0)
    if isinstance(model, HRMConfig | TRMDEQConfig | TransformerConfig):
        changes["network"] = replace(model.network, num_cells=num_cells)
    elif isinstance(model.update, TRMUpdateConfig):
        changes["update"] = replace(model.update, network=replace(model.update.network, num_cells=num_cells))
    elif isinstance(model.update, SymmetricUpdateConfig):
        height, width = BOXES[isqrt(num_cells)]
        changes["update"] = replace(model.update, box_height=height, box_width=width)
    return replace(recipe, model=replace(model, **changes))


def maze(*, minutes: float = 4.0, seed: int = 0) -> PuzzleRecipe:
    """Return the recipe of the demonstration: 1,000 mazes of random walls, 16×16, four minutes of one CPU core.

    It is :func:`maze_walls` on smaller mazes, with noise in training, by which solves converge.
    """
    recipe = maze_walls(minutes=minutes, seed=seed)
    assert isinstance(recipe.model, AttractorReasonerConfig)
    return replace(
        recipe,
        model=replace(recipe.model, noise=0.05),
        data=MazeDataConfig(style="walls", size=16, min_path=32, corner_fraction=0.0, seed=seed),
        supervision=replace(recipe.supervision, windows=(10,)),
    )


def maze_walls(family: str = "attractor", *, minutes: float = 10.0, seed: int = 0) -> PuzzleRecipe:
    """Return the recipe for Maze-Hard on a CPU: 1,000 mazes of random walls, 30×30, with paths of more than 110 steps.

    The state starts from zero and is not damped, so that information about S and G spreads in the order of the distance.
    Training begins on windows, in which paths are short: a segment's gradient reaches through a larger part of them. The
    attractor also learns the steps to G, modulo 3. The other families learn from the answers alone; they have convolutional
    layers of the same width, and as many calls of their network in a segment.
    """
    if family == "attractor":
        model: ReasonerModelConfig = AttractorReasonerConfig(
            update=GatedConvolutionUpdateConfig(),
            obstacles=(int(Cell.WALL),),
            damping=1.0,
            noise=0.0,
            random_init=False,
            evaluations_per_segment=8,
            backprop_steps=7,
        )
        special: Any = {"batch_size": 16, "max_segments": 40, "windows": (10, 16), "auxiliary_weight": 1.0}
    else:
        cells = GridNetworkConfig(width=32, hidden=64, mixing="convolution")
        model = _model(family, cells, len(Cell) - 1, len(Cell), evaluations_per_segment=2, num_latent=3)
        special = {"batch_size": 8, "max_segments": 24, "windows": (10, 16, 22)}
    return PuzzleRecipe(
        model=model,
        data=replace(PUBLISHED["maze"], seed=seed),
        supervision=_supervision(family, augment=False, **special),
        train=TrainConfig(seconds=60 * minutes, cooldown_fraction=0.8, log_every=50, seed=seed),
    )


MINUTES = {6: 6, 9: 60}
CLUES = {6: 10}


def sudoku(size: int, family: str = "attractor", *, seed: int = 0) -> PuzzleRecipe:
    """Return the recipe for Sudokus of 6 or 9 digits on a CPU: six minutes, or an hour, on two cores.

    All families have layers of the same kind and width and the same training; they differ in the update. ``trm``, ``eqr``,
    ``trm-deq`` and ``paper`` have the attractor's network, ``hrm`` two of them, and ``transformer`` four of them in
    sequence, each used once.
    """
    if size not in MINUTES:
        raise ConfigError(f"there is no recipe for Sudokus of {size} digits; choose 6 or 9.")
    num_tokens = NAME_TOKENS["trm-deq"] if family == "trm-deq" else 0  # the others have no names here
    cells = GridNetworkConfig(width=128, hidden=256, cell_hidden=128, num_cells=size**2 + num_tokens)
    return PuzzleRecipe(
        model=_model(family, cells, size + 1, size + 1, evaluations_per_segment=2, num_latent=3),
        data=SudokuDataConfig(size=size, clues=CLUES.get(size), num_puzzles={6: 1000}.get(size, 10_000), seed=seed),
        supervision=_supervision(family, batch_size=64, max_segments=6),
        train=TrainConfig(
            seconds=60.0 * MINUTES[size], optimizer=OptimizerConfig(lr=2e-3), precision="bf16", log_every=50, seed=seed
        ),
    )


def sudoku_symmetric(size: int = 9, *, minutes: float = 15.0, seed: int = 0) -> PuzzleRecipe:
    """Return the recipe with the symmetric update, on a CPU: Sudokus of 6 digits, or of 9 that need guesses.

    Give those of 9 digits as ``data``.
    """
    if size not in MINUTES:
        raise ConfigError(f"there is no recipe for Sudokus of {size} digits; choose 6 or 9.")
    height, width = BOXES[size]
    channels, evaluations, batch_size, max_segments, cooldown = {6: (24, 8, 32, 6, 0.8), 9: (32, 16, 24, 8, 0.5)}[size]
    return PuzzleRecipe(
        model=AttractorReasonerConfig(
            num_symbols=size + 1,
            num_classes=size + 1,
            update=SymmetricUpdateConfig(width=channels, hidden=3 * channels, box_height=height, box_width=width),
            noise=0.0,
            evaluations_per_segment=evaluations,
            backprop_steps=8,
        ),
        data=SudokuDataConfig(size=size, clues=CLUES.get(size), seed=seed),
        supervision=DeepSupervisionConfig(batch_size=batch_size, max_segments=max_segments),
        train=TrainConfig(
            seconds=60 * minutes,
            optimizer=OptimizerConfig(lr=3e-3),
            cooldown_fraction=cooldown,
            log_every=50,
            seed=seed,
        ),
    )


PUBLISHED: dict[str, Any] = {
    "sudoku": SudokuDataConfig(),
    "maze": MazeDataConfig(style="walls", size=30, min_path=111, corner_fraction=0.0),
    "unique": MazeDataConfig(style="unique", size=30, min_path=100, max_path=140, corner_fraction=0.0),
}
WIDTHS_27M = {"sudoku": 1216, "maze": 1024, "unique": 1024}  # at which two layers have the weights of HRM


def published(task: str, family: str = "attractor", *, width: int | None = None, seed: int = 0) -> PuzzleRecipe:
    """Return the recipe of a published task at the published size and number of steps, for one GPU.

    The tasks are those of TRM (arXiv:2510.04871) and EqR (arXiv:2605.21488): Sudoku-Extreme, whose 81 cells an MLP
    mixes (5M weights); and the mazes Maze-Hard (7M) and Maze-Unique (``"unique"``, one layer of 128 channels), whose 900
    cells attention mixes. HRM and the Transformer have 27M weights and attention; so have the two forms of Attractor
    Models, ``trm-deq`` (their code) and ``paper`` (their text). At the ``width`` of ``WIDTHS_27M`` the attractor and TRM
    have 27M too: they are wider, with more heads of the same size, and not deeper, which hurts according to TRM's authors.
    Give 1,000 puzzles of the published data sets as ``data``; otherwise 1,000 puzzles like them are generated. Mazes are
    not augmented.

    Different from the papers: AdamW instead of AdamATan2, gradients clipped at 1, and for HRM the settings of TRM.
    ``paper`` starts from zero: the gradient of its learnt start is zero at a fixed point.
    Positions are rows and columns for the attractor, and the cells in reading order for the baselines.
    """
    recursive = family in ("attractor", "trm", "eqr")
    tiny = task == "unique" and recursive and width is None
    width = width or (128 if tiny else 512)
    num_tokens = NAME_TOKENS.get(family, 0) if task != "unique" or not recursive else 0
    cells = GridNetworkConfig(
        width=width,
        num_layers=1 if tiny else 2,
        hidden=swiglu_hidden(width) if tiny else 3 * width,
        cell_hidden=swiglu_hidden(81 + num_tokens),
        num_cells=81 + num_tokens,
        num_heads=8 if tiny else width // 64,
        mixing="mixer" if task == "sudoku" and recursive else "attention",
        grid_positions=family == "attractor",
    )
    num_symbols, num_classes = (10, 10) if task == "sudoku" else (len(Cell) - 1, len(Cell))
    num_latent = 6 if task == "sudoku" else 4
    model: Any = _model(
        family, cells, num_symbols, num_classes, evaluations_per_segment=3, num_latent=num_latent, halting=True
    )
    settings: Any = {"replace_halted": True, "cross_entropy": "stablemax", "augment": task == "sudoku"}
    sign_lr = 1e-2 if family == "trm-deq" else 1e-4
    names: Any = {"sign_pattern": "puzzle_emb", "sign_lr": sign_lr, "sign_weight_decay": 1.0} if num_tokens else {}
    num_steps = {"unique": 100_000, "sudoku": 50_000 if family == "eqr" else 65_000}.get(task, 65_000)
    return PuzzleRecipe(
        model=replace(model, num_name_tokens=num_tokens, name_width=width * (num_tokens > 1)) if num_tokens else model,
        data=replace(PUBLISHED[task], seed=seed),
        supervision=_supervision(family, batch_size=768, max_segments=16, **settings),
        train=TrainConfig(
            num_steps=num_steps,
            optimizer=OptimizerConfig(lr=1e-4, weight_decay=1.0, **names),
            warmup_fraction=2000 / num_steps,
            cooldown_fraction=0.0,
            ema_decay=0.999,
            precision="bf16",
            log_every=50,
            seed=seed,
        ),
    )


def arc(family: str = "trm", *, seed: int = 0) -> PuzzleRecipe:
    """Return the recipe for ARC-AGI at the published size, for GPUs; give a folder of ``attractor data arc`` as ``data``.

    ``num_steps`` is TRM's for ARC-AGI-1 with ConceptARC; ARC-AGI-2 has 724,000. Differences from TRM's code are those of
    :func:`published`; and all pairs are drawn equally often, not all tasks. The gradients of the names' embeddings are
    dense. EqR has not been published for ARC: here it has the names of TRM.
    """
    recipe: Any = published("maze", family, seed=seed)
    counts: dict[str, Any] = {"num_symbols": ARC.num_symbols(SIDE), "num_classes": ARC.num_classes(SIDE)}
    counts |= {"num_name_tokens": 16, "name_width": recipe.model.width} if family == "eqr" else {}
    return replace(
        recipe,
        model=replace(recipe.model, **counts),
        data=ArcDataConfig(),
        train=replace(
            recipe.train,
            num_steps=518_000,
            warmup_fraction=2000 / 518_000,
            optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.1, sign_pattern="puzzle_emb"),
        ),
    )


NAME_TOKENS = {"trm": 16, "trm-deq": 16, "hrm": 1}  # the first holds an embedding, the others are zeros
REASONER_FAMILIES = ("attractor", "trm", "eqr", "hrm", "trm-deq", "paper", "transformer")
NAMED_FAMILIES = ("trm", "eqr", "hrm", "trm-deq")  # that have cells for the names of puzzles


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
            update=recursion,
            evaluations_per_segment=evaluations_per_segment,
            backprop_steps=1,
            halting=halting,
            **counts,
        )
    if family in ("trm", "eqr"):
        config = TRMConfig if family == "trm" else EqRConfig
        return config(update=recursion, evaluations_per_segment=evaluations_per_segment, **counts)
    wide = cells.width >= 512
    if family == "hrm":
        return HRMConfig(network=replace(cells, num_layers=4 if wide else 2), evaluations_per_segment=2, **counts)
    if family == "trm-deq":
        if cells.mixing != "convolution":  # names have cells outside of the grid, which a convolution does not see
            counts |= {"num_name_tokens": NAME_TOKENS[family], "name_width": cells.width}
        return TRMDEQConfig(network=replace(cells, num_layers=8 if wide else 2), **counts)
    if family == "paper":
        return AttractorReasonerConfig(
            update=TRMUpdateConfig(network=replace(cells, num_layers=8 if wide else 2), num_latent=1),
            random_init=False,
            damping=1.0,
            noise=0.0,
            solver="anderson",
            gradient="one-step",
            segment_tolerance=1e-3,
            evaluations_per_segment=16,
            backprop_steps=1,
            halting=halting,
            **counts,
        )
    if family == "transformer":
        return TransformerConfig(network=replace(cells, num_layers=8), halting=halting, **counts)
    raise ConfigError(f"there is no family {family!r}; {suggestion(family, REASONER_FAMILIES)}")


def _supervision(family: str, *, max_segments: int, **settings: Any) -> DeepSupervisionConfig:
    """Return the settings of supervision. A Transformer has no state, so that it has one segment per question."""
    return DeepSupervisionConfig(max_segments=1 if family == "transformer" else max_segments, **settings)
