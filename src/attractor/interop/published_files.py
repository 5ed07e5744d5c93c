"""Checkpoints of puzzle models as their authors' code writes them: the settings, and the weights that are evaluated."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from attractor.errors import CheckpointError, requires_extra
from attractor.files import first_line, read_json
from attractor.interop.known import require_value
from attractor.interop.weights import ADVICE, NAMES, read_weights

FILE = re.compile(r"checkpoint|step_\d+|.+\.(pth|pt)")
WRAPPERS = ("module.", "model.", "inner.")  # prefixes added by several devices, by the loss and by halting
MODULES = ("trm", "eqr", "hrm", "hrm_act_v1")  # variants such as trm_singlez have the same settings
NUM_CELLS = {11: 81, 6: 900, 12: 900}  # by the number of symbols: Sudoku-Extreme, the published mazes, ARC-AGI


@dataclass(frozen=True, kw_only=True)
class Published:
    """Settings of a network by the authors' names, from ``file``, and its weights without the prefixes of wrappers."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]
    file: Path
    is_size_assumed: bool = False  # the number of cells is that of the published data with as many symbols


def read_published(source: Path | str, *, seq_len: int | None = None) -> Published:
    """Read a checkpoint of TRM, HRM, EqR or TRM-DEQ: a folder, or one file of it.

    Averaged weights (EMA) are taken where the checkpoint has them, as in the authors' evaluation. The numbers of symbols,
    of puzzle names and of cells are read from the tensors where no setting tells them.

    Parameters
    ----------
    source
        As the authors' code writes it (``step_N`` or ``checkpoint`` with ``all_config.yaml``; ``eqr.pth``; ``last.pt``),
        or ``config.json`` with ``model.safetensors``.
    seq_len
        Cells of a puzzle, for checkpoints that do not tell them.

    Raises
    ------
    CheckpointError
        Without weights or settings, with several checkpoints, and for damaged files.
    """
    source = Path(source)
    folder = source if source.is_dir() else source.parent
    file, stored = _read(source)
    weights, average, settings = stored, None, None  # type: Any, Any, Any
    if "model_state" in stored:  # TRM-DEQ
        weights, average, settings = (stored.get(name) for name in ("model_state", "ema_state", "model_config"))
    elif "model" in stored:  # EqR
        weights, average, settings = stored["model"], _get(stored, "ema", "shadow"), _get(stored, "config", "arch")
    if settings is None:
        settings, file = _read_settings(folder)
    weights = _unwrapped(weights, source) | _unwrapped(average or {}, source)
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file}: holds no settings of a network; {ADVICE}.")
    if "name" in settings:
        require_value(file, "arch.name", str(settings["name"]).split("@")[0].split(".")[-1], *MODULES)
    settings = {name: value for name, value in settings.items() if name not in ("name", "short_name", "loss")}
    if seq_len is not None:
        settings["seq_len"] = seq_len
    completed = _completed(settings, weights, file)
    assumed = "seq_len" not in completed
    if assumed:
        if completed.get("vocab_size") not in NUM_CELLS:
            raise CheckpointError(f"{file}: does not tell how many cells its puzzles have; give --seq-len (seq_len=).")
        completed["seq_len"] = NUM_CELLS[completed["vocab_size"]]
    return Published(settings=completed, weights=weights, file=file, is_size_assumed=assumed)


def _read(source: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file of the weights, or the folder that shards are in, and its content."""
    if source.is_dir():
        if any((source / f"{name}{end}").is_file() for name in NAMES for end in ("", ".index.json")):
            return source, read_weights(source)
        files = sorted(file for file in source.iterdir() if file.is_file() and FILE.fullmatch(file.name))
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise CheckpointError(f"{source}: holds several checkpoints ({names}); give one of these files.")
        if not files:
            raise CheckpointError(
                f"{source}: holds no checkpoint; give a folder with config.json and {' or '.join(NAMES)}, or one that the "
                "code of TRM, HRM, EqR or TRM-DEQ wrote."
            )
        source = files[0]
    try:
        # An object of any class that torch does not allow, such as a random state, is left out: its code never runs.
        unknown: list[Any] = [(_LeftOut, name) for name in get_unsafe_globals_in_checkpoint(source)]
        with safe_globals(unknown):
            stored = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds
        kind = type(error).__name__  # torch's own text advises to run the code of the file
        raise CheckpointError(f"{source}: cannot be read as a checkpoint of tensors ({kind}); {ADVICE}.") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{source}: holds no dictionary of tensors; {ADVICE}.")
    return source, stored


class _LeftOut:
    """An object that is not read."""

    def __init__(self, *values: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...


def _get(stored: dict[str, Any], name: str, part: str) -> Any:
    found = stored.get(name)
    return found.get(part) if isinstance(found, dict) else None


def _read_settings(folder: Path) -> tuple[Any, Path]:
    """Return the settings beside the weights, and their file."""
    file = folder / "all_config.yaml"
    if (folder / "config.json").exists() or not file.exists():
        return read_json(folder / "config.json", CheckpointError, advice=ADVICE), folder / "config.json"
    with requires_extra("train"):
        import yaml  # type: ignore[import-untyped]
    try:
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file}: cannot be read as YAML ({first_line(error)}); {ADVICE}.") from error
    return stored.get("arch") if isinstance(stored, dict) else None, file


def _unwrapped(weights: Any, source: Path) -> dict[str, Tensor]:
    """Return tensors under their names in the network."""
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{source}: holds no dictionary of tensors; {ADVICE}.")
    found = {}
    for name, value in weights.items():
        name = name.replace("_orig_mod.", "")  # added by compilation, anywhere
        for prefix in WRAPPERS:
            name = name.removeprefix(prefix)
        found[name] = value
    return found


def _completed(settings: dict[str, Any], weights: dict[str, Tensor], file: Path) -> dict[str, Any]:
    """Return the settings with what the authors' code takes from its data set or from its defaults."""
    sizes = {
        setting: weights[name].shape[dim]
        for setting, name, dim in (
            ("vocab_size", "embed_tokens.embedding_weight", 0),
            ("num_puzzle_identifiers", "puzzle_emb.weights", 0),
            ("num_cells", "L_level.layers.0.mlp_t.gate_up_proj.weight", 1),
        )
        if name in weights
    }
    num_cells = sizes.pop("num_cells", None)  # of a mixer
    stored = sizes | settings
    if not stored.get("H_layers") and "lambda_" not in stored and stored.get("puzzle_emb_ndim"):
        stored.setdefault("puzzle_emb_len", 16)  # of TRM and TRM-DEQ
    board: list[Any] = [stored.get(f"board_{side}") for side in ("height", "width")]
    if stored.get("pos_encodings") == "rope2d" and all(board):
        require_value(file, "board_width", board[1], board[0])
    if "seq_len" in stored:
        return stored
    if num_cells is not None:
        stored["seq_len"] = num_cells - stored.get("puzzle_emb_len", 0)
    elif all(isinstance(side, int) for side in board):
        stored["seq_len"] = board[0] * board[1]
    return stored
