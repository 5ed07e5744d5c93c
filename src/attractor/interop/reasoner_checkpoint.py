"""Published checkpoints of TRM, EqR, HRM and TRM-DEQ, read into our models, and written from them.

The networks have the same tensors under the same names; the other tensors are renamed. Every setting must be known and
have an implemented value, and every tensor must be known and present. Not implemented are learnt positions.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from attractor.config import to_dict
from attractor.errors import AttractorError, ConfigError
from attractor.files import new_folder, require_free
from attractor.interop.known import require_settings, require_tensors, require_value, settings_error
from attractor.interop.published_files import Published, read_published
from attractor.models.reasoning import (
    HRM,
    TRMDEQ,
    EqR,
    EqRConfig,
    HRMConfig,
    TRMConfig,
    TRMDEQConfig,
    TwoPartConfig,
    TwoPartReasoner,
)
from attractor.nn import GridNetworkConfig, TRMUpdateConfig
from attractor.nn.grid import swiglu_hidden

SHARED = {"seq_len", "vocab_size", "H_cycles", "L_cycles", "L_layers", "hidden_size", "expansion", "num_heads"}
SHARED |= {"pos_encodings"}
DEFAULTS: dict[str, Any] = {"puzzle_emb_ndim": 0, "puzzle_emb_len": 0, "num_puzzle_identifiers": 1, "mlp_t": False}
DEFAULTS |= {"rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "halt_max_steps": 16}
EQR: dict[str, Any] = {"lambda_": 0.95, "noise_scale": 0.01, "H_init_std": 1.0, "L_init_std": 1.0}
TRM_DEQ: dict[str, Any] = {
    "deq_max_iter": 8,
    "deq_min_iter": 4,
    "deq_tol": 1e-3,
    "deq_anderson_m": 5,
    "bptt_through": 1,
}
TRM_DEQ |= {"deq_inner": True, "deq_anderson_beta": 1.0}
# Settings that do not change a trained network. ``H_layers`` comes from HRM; the code of the others ignores it.
IGNORED = {"batch_size", "halt_exploration_prob", "forward_dtype", "no_ACT_continue"}
IGNORED |= {"jacobian_reg_lambda", "jacobian_reg_n_samples", "board_height", "board_width"}
NAMES = {"embedding.weight": "embed_tokens.embedding_weight", "puzzle_emb": "puzzle_emb.weights"}


def import_reasoner(folder: Path | str, *, seq_len: int | None = None) -> TwoPartReasoner:
    """Return the model of a published checkpoint, in float32 and evaluation mode. Cells are in reading order.

    Its settings tell the family: EqR has ``lambda_``, TRM-DEQ ``bptt_through``, and HRM layers of a network H. Arguments
    and what is read are those of :func:`attractor.interop.published_files.read_published`.

    Raises
    ------
    CheckpointError
        For unknown or missing settings and tensors, values that are not implemented, and damaged files.
    """
    return build_reasoner(read_published(folder, seq_len=seq_len))


def build_reasoner(published: Published) -> TwoPartReasoner:
    """Return the model of a checkpoint that is read."""
    model = _config(published.settings, published.file).build()
    assert isinstance(model, TwoPartReasoner)
    model.load_state_dict(_translate(published, model))
    return model.eval()


def _config(stored: dict[str, Any], file: Path) -> TwoPartConfig:
    own = EQR if "lambda_" in stored else TRM_DEQ if "bptt_through" in stored else {}
    is_hrm = not own and stored.get("H_layers") not in (None, 0)
    theirs = DEFAULTS | own | stored
    mixes = theirs["mlp_t"] is True
    require_settings(
        theirs.keys() - IGNORED - {"H_layers"}, SHARED | DEFAULTS.keys() | own.keys(), f"{file}: the setting"
    )
    positions = ("rope", "rope2d") if own is EQR else ("rope",)
    fixed: dict[str, tuple[Any, ...]] = {"mlp_t": (False,) if is_hrm else (True, False), "rms_norm_eps": (1e-5,)}
    fixed |= {"pos_encodings": ("none", "rope") if mixes else positions}
    fixed |= {"H_layers": (theirs["L_layers"],)} if is_hrm else {}
    fixed |= {"deq_inner": (True,), "deq_anderson_beta": (1.0,)} if own is TRM_DEQ else {}
    for name, values in fixed.items():
        require_value(file, name, theirs[name], *values)
    try:
        num_tokens = theirs["puzzle_emb_len"] or -(-theirs["puzzle_emb_ndim"] // theirs["hidden_size"])
        if bool(theirs["puzzle_emb_ndim"]) != bool(num_tokens):
            raise ConfigError(f"puzzle_emb_len={num_tokens} with puzzle_emb_ndim={theirs['puzzle_emb_ndim']}")
        network = GridNetworkConfig(
            width=theirs["hidden_size"],
            num_layers=theirs["L_layers"],
            mixing="mixer" if mixes else "attention",
            hidden=swiglu_hidden(theirs["hidden_size"], theirs["expansion"]),
            cell_hidden=swiglu_hidden(theirs["seq_len"] + num_tokens, theirs["expansion"]),
            num_cells=theirs["seq_len"] + num_tokens,
            num_heads=theirs["num_heads"],
            grid_positions=theirs["pos_encodings"] == "rope2d",
            theta=float(theirs["rope_theta"]),
        )
        counts = {
            "num_symbols": theirs["vocab_size"],
            "num_classes": theirs["vocab_size"],
            "evaluations_per_segment": theirs["H_cycles"],
            **(_names(theirs, num_tokens) if num_tokens else {}),
        }
        if is_hrm:
            return HRMConfig(network=network, num_latent=theirs["L_cycles"], **counts)
        if own is TRM_DEQ:
            return TRMDEQConfig(
                network=network,
                tolerance=theirs["deq_tol"],
                max_evaluations=theirs["deq_max_iter"],
                min_evaluations=theirs["deq_min_iter"],
                window=theirs["deq_anderson_m"],
                num_latent=theirs["bptt_through"],
                **counts,
            )
        update = TRMUpdateConfig(network=network, num_latent=theirs["L_cycles"])
        if own is EQR:
            return EqRConfig(
                update=update,
                damping=theirs["lambda_"],
                noise=theirs["noise_scale"],
                init_std=(theirs["H_init_std"], theirs["L_init_std"]),
                **counts,
            )
        return TRMConfig(update=update, **counts)
    except (AttractorError, TypeError, ValueError) as error:
        raise settings_error(file, error) from error


def _names(theirs: dict[str, Any], num_tokens: int) -> dict[str, int]:
    width = theirs["puzzle_emb_ndim"]
    is_full = width == num_tokens * theirs["hidden_size"]
    return {
        "num_name_tokens": num_tokens,
        "name_width": 0 if is_full else width,
        "num_names": theirs["num_puzzle_identifiers"],
    }


def _translate(published: Published, model: TwoPartReasoner) -> dict[str, Tensor]:
    """Return the weights under our names; require every tensor in its shape, and no other tensor."""
    found = published.weights
    ours = model.state_dict()
    names = {own: _published_name(own) for own in ours}
    shapes = {name: tuple(ours[own].shape) for own, name in names.items()}
    require_tensors(found, shapes, published.file.parent)
    return _reorder_grid_positions({own: found[name].float() for own, name in names.items()}, model)


def _reorder_grid_positions(weights: dict[str, Tensor], model: TwoPartReasoner) -> dict[str, Tensor]:
    """Reorder the rows of queries and keys for positions by row and column; the order back is the same.

    The published code turns each half of a head's channels by one coordinate, with pairs a quarter of a head apart. Our
    pairs are half a head apart.
    """
    config: Any = model.config
    network = getattr(config, "update", config).network
    if network.mixing != "attention" or not network.grid_positions:
        return weights
    changed = {}
    for name, value in weights.items():
        if name.endswith("qkv_proj.weight"):
            q_and_k, v = value.view(3, network.num_heads, 2, 2, -1, network.width).split([2, 1])
            value = torch.cat([q_and_k.transpose(2, 3), v]).reshape(value.shape)
        changed[name] = value
    return changed


def _published_name(own: str) -> str:
    for prefix in ("update.net.", "net."):
        if own.startswith(prefix):
            return own.replace(prefix, "L_level.", 1)
    return NAMES.get(own, own)


def export_reasoner(model: TwoPartReasoner, folder: Path | str, *, num_cells: int) -> None:
    """Write a model as its authors' code stores it: ``config.json`` and ``model.safetensors``.

    Parameters
    ----------
    folder
        Is created; it must not exist.
    num_cells
        Cells of the puzzles (``seq_len``).

    Raises
    ------
    ConfigError
        For a model that the published code cannot hold, such as one with other hidden widths.
    """
    require_free(Path(folder))
    config: Any = model.config
    update = getattr(config, "update", config)
    network, num_latent = update.network, update.num_latent
    num_tokens, mixes = config.num_name_tokens, network.mixing == "mixer"
    positions = "none" if mixes else "rope2d" if network.grid_positions else "rope"
    settings = {
        "seq_len": num_cells,
        "vocab_size": config.num_symbols,
        "puzzle_emb_ndim": config.name_width or num_tokens * config.width,
        "puzzle_emb_len": num_tokens,
        "num_puzzle_identifiers": config.num_names,
        "H_cycles": config.evaluations_per_segment,
        "L_cycles": num_latent,
        "H_layers": network.num_layers if isinstance(model, HRM) else 0,
        "L_layers": network.num_layers,
        "hidden_size": config.width,
        "expansion": 4 if swiglu_hidden(config.width) == network.hidden else 1.5 * network.hidden / config.width,
        "num_heads": network.num_heads,
        "pos_encodings": positions,
        "rope_theta": network.theta,
        "mlp_t": mixes,
        "forward_dtype": "float32",
        "halt_max_steps": 16,
        "halt_exploration_prob": 0.1,
    }
    if isinstance(model, EqR):
        settings |= dict(zip(EQR, (config.damping, config.noise, *config.init_std), strict=True))
    if isinstance(model, TRMDEQ):
        solve = (config.max_evaluations, config.min_evaluations, config.tolerance, config.window, num_latent)
        settings |= dict(zip(TRM_DEQ, solve, strict=False))
    if _without_unused(_config(settings, Path("config.json"))) != _without_unused(config):
        raise ConfigError(
            "the published code has no such model: it has one vocabulary for questions and answers, and hidden widths that "
            "follow from the width."
        )
    weights = _reorder_grid_positions(model.state_dict(), model)
    weights = {f"inner.{_published_name(name)}": value for name, value in weights.items()}
    with new_folder(Path(folder)) as part:
        (part / "config.json").write_text(json.dumps(settings, indent=1))
        save_file({name: value.contiguous() for name, value in weights.items()}, part / "model.safetensors")


def _without_unused(config: TwoPartConfig) -> dict[str, Any]:
    """Return the settings, without those that only a mixer has."""
    settings = to_dict(config)
    network = settings.get("update", settings)["network"]
    if network["mixing"] != "mixer":
        del network["num_cells"], network["cell_hidden"]
    return settings
