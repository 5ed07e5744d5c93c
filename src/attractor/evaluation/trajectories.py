"""Trajectories of token states: their residuals over a fixed number of evaluations, and their paths in two dimensions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attractor.errors import ConfigError, DataError
from attractor.evaluation.internalisation import default_budget, run_window

if TYPE_CHECKING:
    from attractor.models.language import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """States after 0, 1, …, ``depth`` evaluations, when no token stops early.

    Attributes
    ----------
    residual
        (depth + 1, N): relative residual of all N tokens.
    paths
        (depth + 1, M, 2): states of M of the tokens, projected on the two principal components of all these states.
    offsets
        (depth + 1, M, 2): the same for each state's difference from the last state of its token.
    explained, explained_offsets
        Share of the variance along each of the two components.
    """

    residual: Tensor
    paths: Tensor
    offsets: Tensor
    explained: tuple[float, float]
    explained_offsets: tuple[float, float]


@torch.no_grad()
def trajectories(
    model: "LanguageModel",
    windows: Sequence[Tensor],
    *,
    depth: int,
    num: int = 36,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Trajectories:
    """Follow the states of all tokens from the start of a solve through ``depth`` evaluations.

    Parameters
    ----------
    windows
        Token sequences, each (T,) int64.
    num, seed
        Number of tokens whose paths are projected, and the seed of their random choice.
    advance
        Called as ``advance(done, total)`` with numbers of windows.

    Raises
    ------
    ConfigError, DataError
        For a model without a solve, a depth below 1, no tokens, or no token that keeps finite states.
    """
    default_budget(model, None)
    if depth < 1:
        raise ConfigError(f"depth={depth}: give a whole number from 1 up.")
    if not windows:
        raise DataError("there are no tokens to follow; give documents that are not empty.")
    states, residuals = [], []
    for ids in windows:
        # A run of d evaluations returns the state after d of them, and the residual of the state before that.
        runs = [run_window(model, ids, {"depth": d}).solution for d in range(depth + 2)]
        states.append(torch.stack([run.value[0].float() for run in runs[:-1]]))
        residuals.append(torch.stack([run.residual[0] for run in runs[1:]]))
        advance(len(states), len(windows))
    finite = torch.cat(states, dim=1)
    finite = finite[:, finite.isfinite().all(dim=2).all(dim=0)]
    if not finite.shape[1]:
        raise DataError("no token keeps finite states through the evaluations, so there is nothing to follow.")
    order = torch.randperm(finite.shape[1], generator=torch.Generator().manual_seed(seed))
    chosen = finite[:, order[:num].to(finite.device)].cpu()  # (depth + 1, M, D)
    paths, explained = _principal_components(chosen)
    offsets, explained_offsets = _principal_components(chosen - chosen[-1], center=False)
    return Trajectories(
        residual=torch.cat(residuals, dim=1).cpu(),
        paths=paths,
        offsets=offsets,
        explained=explained,
        explained_offsets=explained_offsets,
    )


def _principal_components(states: Tensor, *, center: bool = True) -> tuple[Tensor, tuple[float, float]]:
    """Project states (K, M, D) on their two principal components: (K, M, 2) and the share of the variance along each."""
    flat = states.flatten(0, 1).double()
    flat = flat - flat.mean(dim=0) if center else flat
    u, s, _ = torch.linalg.svd(flat, full_matrices=False)
    projected = (u * s)[:, :2]
    if projected.shape[1] < 2:
        projected = torch.nn.functional.pad(projected, (0, 2 - projected.shape[1]))
    shares = [*(s.square() / s.square().sum().clamp_min(1e-300)).tolist(), 0.0][:2]
    return projected.view(*states.shape[:2], 2).float(), (shares[0], shares[1])
