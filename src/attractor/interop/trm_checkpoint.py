"""TRM's official weights, read into :class:`attractor.models.reasoning.TRM`.

The layers have the same tensors under the same names; the other tensors are renamed. Two parts of the official model
are not implemented: puzzle embeddings (``puzzle_emb``) and learnt positions. Checkpoints with them are refused. Every
setting must be known and have an implemented value, and every tensor must be known and present.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from attractor.errors import AttractorError, CheckpointError
from attractor.files import read_json
from attractor.interop.known import require_settings, require_tensors, require_value, settings_error
from attractor.interop.weights import ADVICE, read_weights
from attractor.models.reasoning import TRM, TRMConfig
from attractor.nn import GridNetworkConfig, TRMUpdateConfig
from attractor.nn.grid import swiglu_hidden

READ = {"seq_len", "vocab_size", "H_cycles", "L_cycles", "L_layers", "hidden_size", "expansion", "num_heads", "mlp_t"}
DEFAULTS = {"puzzle_emb_ndim": 0, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "puzzle_emb_len": 16, "mlp_t": False}
# Settings that do not change a trained network. ``H_layers`` comes from HRM; the official code ignores it too.
IGNORED = {"batch_size", "num_puzzle_identifiers", "H_layers", "halt_max_steps", "halt_exploration_prob"}
IGNORED |= {"forward_dtype", "no_ACT_continue"}
NAMES = {
    "embedding.weight": "embed_tokens.embedding_weight",
    "lm_head.weight": "lm_head.weight",
    "q_head.weight": "q_head.weight",
    "q_head.bias": "q_head.bias",
    "H_init": "H_init",
    "L_init": "L_init",
}
PREFIXES = ("_orig_mod.", "model.", "inner.")  # added by compilation, by the loss and by halting


def import_trm(folder: Path | str) -> TRM:
    """Return the model of an official checkpoint, in float32 and evaluation mode. Cells are in reading order.

    Parameters
    ----------
    folder
        With ``config.json``, the settings of the official model, and ``model.safetensors`` or ``pytorch_model.bin``.

    Raises
    ------
    CheckpointError
        For unknown or missing settings and tensors, values that are not implemented, and damaged files.
    """
    folder = Path(folder)
    model = _config(read_json(folder / "config.json", CheckpointError, advice=ADVICE), folder / "config.json").build()
    model.load_state_dict(_translate(read_weights(folder), model.state_dict(), folder))
    return model.eval()


def _config(stored: dict[str, Any], file: Path) -> TRMConfig:
    theirs = DEFAULTS | stored
    require_settings(theirs.keys() - IGNORED, READ | DEFAULTS.keys() | {"pos_encodings"}, f"{file}: the setting")
    fixed: dict[str, tuple[Any, ...]] = {"mlp_t": (True, False), "puzzle_emb_ndim": (0,), "puzzle_emb_len": (0,)}
    fixed |= {"rms_norm_eps": (1e-5,), "pos_encodings": ("none", "rope") if theirs["mlp_t"] is True else ("rope",)}
    for name, values in fixed.items():
        require_value(file, name, theirs[name], *values)
    try:
        cells = GridNetworkConfig(
            width=theirs["hidden_size"],
            num_layers=theirs["L_layers"],
            mixing="mixer" if theirs["mlp_t"] else "attention",
            hidden=swiglu_hidden(theirs["hidden_size"], theirs["expansion"]),
            cell_hidden=swiglu_hidden(theirs["seq_len"], theirs["expansion"]),
            num_cells=theirs["seq_len"],
            num_heads=theirs["num_heads"],
            grid_positions=False,
            theta=float(theirs["rope_theta"]),
        )
        return TRMConfig(
            num_symbols=theirs["vocab_size"],
            num_classes=theirs["vocab_size"],
            update=TRMUpdateConfig(network=cells, num_latent=theirs["L_cycles"]),
            evaluations_per_segment=theirs["H_cycles"],
        )
    except (AttractorError, TypeError, ValueError) as error:
        raise settings_error(file, error) from error


def _translate(theirs: dict[str, Tensor], ours: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return the weights under our names; require every tensor in its shape, and no other tensor."""
    found = {}
    for name, value in theirs.items():
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        found[name] = value
    names = {own: NAMES.get(own, own.replace("update.net.", "L_level.")) for own in ours}
    require_tensors(found, {name: tuple(ours[own].shape) for own, name in names.items()}, folder)
    return {own: found[name].float() for own, name in names.items()}
