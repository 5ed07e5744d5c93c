"""Mazes solved by settling: learn on small ones, iterate to rest on large ones."""

from dataclasses import dataclass, field, replace

from attractor.config import require_whole
from attractor.data.mazes import Cell
from attractor.errors import ConfigError
from attractor.models.reasoning import AttractorReasonerConfig
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
class MazeRecipe:
    """Everything about a run on mazes."""

    model: AttractorReasonerConfig = field(default_factory=AttractorReasonerConfig)
    data: MazeDataConfig = field(default_factory=MazeDataConfig)
    supervision: DeepSupervisionConfig = field(default_factory=DeepSupervisionConfig)
    train: TrainConfig


def maze(*, minutes: float = 4.0, seed: int = 0) -> MazeRecipe:
    """The demonstration: 1,000 mazes of 11×11, four minutes on two CPU cores."""
    return MazeRecipe(
        model=AttractorReasonerConfig(obstacles=(int(Cell.WALL),), damping=0.7, noise=0.1, segment=8, tracked=7),
        data=MazeDataConfig(seed=seed),
        supervision=DeepSupervisionConfig(batch_size=64, max_segments=16),
        train=TrainConfig(seconds=60 * minutes, seed=seed),
    )


def maze_control(*, num_steps: int, seed: int = 0) -> MazeRecipe:
    """A plain unrolled loop for comparison: from a zero state, undamped, without noise, as many steps as the run it controls."""
    recipe = maze(seed=seed)
    return replace(
        recipe,
        model=replace(recipe.model, random_start=False, noise=0.0, damping=1.0),
        train=replace(recipe.train, seconds=None, num_steps=num_steps),
    )
