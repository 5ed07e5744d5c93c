"""Import checkpoints that others published: language models of the paper's authors, and puzzle models of four families."""

from math import isqrt
from pathlib import Path
from typing import Any

from attractor.config import to_dict
from attractor.data.arc import ARC, SIDE
from attractor.data.maze import Cell
from attractor.errors import CheckpointError, ConfigError
from attractor.experiment.environment import environment
from attractor.experiment.loading import REASONER
from attractor.files import new_folder, read_json, require_free, write_json
from attractor.files.manifest import write_checksums
from attractor.interop.published_files import read_published
from attractor.interop.reasoner_checkpoint import build_reasoner
from attractor.interop.weights import ADVICE
from attractor.models.reasoning import EqR
from attractor.objectives import DeepSupervisionConfig
from attractor.recipes import ArcDataConfig, MazeDataConfig, PuzzleRecipe, SudokuDataConfig
from attractor.training import TrainConfig
from attractor.training.checkpoint import save_weights
from attractor.training.checkpoint.folder import FORMAT


def import_checkpoint(folder: str | Path, out: str | Path, *, seq_len: int | None = None) -> tuple[Any, str]:
    """Convert a published checkpoint. Return the model, and a sentence about what is in ``out``.

    A model for puzzles becomes a checkpoint of this package; ``folder`` and ``seq_len`` are those of
    :func:`attractor.interop.published_files.read_published`. A language model becomes a folder for ``transformers``; its
    ``folder`` holds ``config.json`` and weights that :func:`attractor.interop.weights.read_weights` can read.

    Raises
    ------
    CheckpointError
        If the format is not known, or the folder is damaged.
    ConfigError
        If ``out`` exists or cannot be written.
    """
    config = Path(folder) / "config.json"
    if not config.is_file() or "H_cycles" in read_json(config, CheckpointError, advice=ADVICE):
        return _import_puzzle_model(Path(folder), Path(out), seq_len)
    if seq_len is not None:
        raise ConfigError(f"{folder} holds a language model; seq_len is for puzzle models, leave it out.")
    from attractor.experiment.conversion import import_official

    model, tokenizer = import_official(folder, out)
    return model, "a language model" if tokenizer is not None else "a language model; copy its tokenizer into it"


def _import_puzzle_model(folder: Path, out: Path, seq_len: int | None) -> tuple[Any, str]:
    require_free(out)
    published = read_published(folder, seq_len=seq_len)
    model, settings = build_reasoner(published), published.settings
    num_cells, num_symbols = settings["seq_len"], settings["vocab_size"] - 1  # without the symbol for padding
    data = _find_puzzles(num_cells, num_symbols, folder)
    weights = model.state_dict()
    if not isinstance(data, ArcDataConfig):  # which counts padding as a symbol here, too
        for name in ("embedding.weight", "lm_head.weight"):
            weights[name] = weights[name].roll(-1, dims=0)  # padding is symbol 0 there, and the last one here
    config: Any = model.config
    segments = settings.get("halt_max_steps", 16)
    recipe = PuzzleRecipe(
        model=config,
        data=data,
        supervision=DeepSupervisionConfig(max_segments=segments, cross_entropy="stablemax"),
        train=TrainConfig(num_steps=1),
    )
    run = {
        "format": FORMAT,
        "kind": REASONER,
        "puzzles": {"kind": data.kind, "size": isqrt(num_cells)},
        "recipe": to_dict(recipe),
        "protocol": {
            "depths": [segments * model.evaluations_per_segment],
            "selections": ["logit-window" if isinstance(model, EqR) else "residual"],
        },
        "environment": environment(),
    }
    with new_folder(out) as part:
        save_weights(weights, part)
        write_json(part / "run.json", run)
        write_checksums(part)
    size = f"{isqrt(num_cells)} × {isqrt(num_cells)}"
    size += " (assumed; otherwise give --seq-len)" if published.is_size_assumed else ""
    return model, f"{type(model).__name__} for puzzles of kind {data.kind}, {size}; attractor evaluate measures it"


def _find_puzzles(num_cells: int, num_symbols: int, folder: Path) -> SudokuDataConfig | MazeDataConfig | ArcDataConfig:
    """Tell the puzzles by the numbers of their cells and symbols."""
    size = isqrt(num_cells)
    if size**2 == num_cells and num_symbols == size + 1 and size in (4, 6, 9):
        return SudokuDataConfig(size=size)
    if size**2 == num_cells and num_symbols == len(Cell):
        return MazeDataConfig(size=size)
    if (num_cells, num_symbols) == (SIDE**2, ARC.num_symbols(SIDE) - 1):
        return ArcDataConfig()
    raise CheckpointError(
        f"{folder}: its puzzles have {num_cells} cells of {num_symbols} symbols, which are neither Sudokus, mazes nor ARC; "
        "attractor.interop.import_reasoner reads the network alone."
    )
