"""Equilibrium internalisation: how close a language model's proposal is to its equilibrium.

The loss sees only the equilibrium, yet training moves the proposal towards it, so that few evaluations or none lose little
("Solve the Loop", arXiv:2605.12466). It is measured on held-out text through the forward pass alone, so looped models are
measured in the same way: their equilibrium is the state after their own number of iterations.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attractor.errors import ConfigError, DataError
from attractor.evaluation.text import encode, sliding_windows
from attractor.nn import input_device
from attractor.solve import Status

if TYPE_CHECKING:
    from attractor.models.language import LanguageModel

LOGITS_CHUNK = 128  # tokens whose logits are in memory at a time
NUM_DIAGNOSED = 4  # windows on which the model's diagnostics are computed
SUMS = ("nats", "evaluations", "residual", "kl_divergence", "top1_agreement")


@dataclass(frozen=True, kw_only=True)
class DepthStats:
    """Means over all scored tokens at one depth.

    Attributes
    ----------
    depth
        Number of evaluations; None at the equilibrium.
    residual
        ``‖update(y) − y‖ / ‖y‖`` at the state that is decoded (the last one that the solver accepted).
    flops_per_token
        Floating-point operations, two per multiply-add, with that many evaluations for every token.
    kl_divergence
        ``KL(p_equilibrium ‖ p_depth)`` in nats per token.
    top1_agreement
        Share of tokens after which depth and equilibrium have the same most likely next token.
    """

    depth: int | None
    bits_per_byte: float
    evaluations: float
    residual: float
    flops_per_token: float
    kl_divergence: float
    top1_agreement: float


@dataclass(frozen=True, kw_only=True)
class TokenStats:
    """The solve of each of T tokens of a document: the end-of-text token, then all tokens of the document but the last.

    Attributes
    ----------
    evaluations, residual
        (T,) int64 and (T,) float32, on the CPU.
    proposal_distance
        ``‖y* − c‖ / ‖c‖`` for the proposal ``c`` (T,); None when the solve does not start at a proposal.
    """

    evaluations: Tensor
    residual: Tensor
    proposal_distance: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Internalisation:
    """Result of :func:`measure_internalisation`.

    Attributes
    ----------
    length
        Tokens of the sliding window, which moves by half its length.
    tolerance
        Residual below which a token has converged; None for looped models, which run a fixed number of iterations.
    converged_fraction, verified_fraction
        Share of tokens with a residual below the tolerance, and of those among them for which all earlier tokens had
        stopped too, so that they cannot change any more; None for looped models.
    points
        One entry per depth; the last is the equilibrium.
    tokens
        One entry per document that is not empty.
    gate, spectral_radius
        Mean LayerScale factor of the attractor layers, and spectral radius of the update at the equilibrium, on the first
        windows; None when the model does not report them.
    """

    num_documents: int
    num_tokens: int
    num_bytes: int
    length: int
    tolerance: float | None
    converged_fraction: float | None
    verified_fraction: float | None
    points: tuple[DepthStats, ...]
    tokens: tuple[TokenStats, ...]
    gate: float | None
    spectral_radius: float | None

    @property
    def equilibrium(self) -> DepthStats:
        """The model as it is normally used."""
        return self.points[-1]

    def summary(self) -> str:
        """Return a sentence that says at which depth the loss is lowest."""
        best, solved = min(self.points, key=lambda point: point.bits_per_byte), self.equilibrium
        if best is solved:
            return f"The equilibrium has the lowest loss, {solved.bits_per_byte:.4f} bits per byte."
        return (
            f"Depth {best.depth} has the lowest loss, {best.bits_per_byte:.4f} bits per byte; the equilibrium has "
            f"{solved.bits_per_byte:.4f} ({solved.bits_per_byte / best.bits_per_byte - 1:+.2%})."
        )

    @property
    def proposal_distance(self) -> float | None:
        """Mean ``‖y* − c‖ / ‖c‖``."""
        found = [t.proposal_distance for t in self.tokens if t.proposal_distance is not None]
        return float(torch.cat(found).double().mean()) if found else None


def default_budget(model: Any, tolerance: float | None) -> dict[str, float]:
    """Return the ``forward`` arguments of normal use: a tolerance, or a looped model's trained number of iterations.

    Raises ConfigError for a model without a solve, and for a tolerance given to a looped model.
    """
    from attractor.models.language import AttractorForCausalLM, LoopedForCausalLM

    if isinstance(model, LoopedForCausalLM):
        if tolerance is not None:
            raise ConfigError("a looped model runs a fixed number of iterations; leave out the tolerance.")
        return {"depth": model.config.mean_recurrence}
    if not isinstance(model, AttractorForCausalLM) or not model.config.num_attractor_layers:
        raise ConfigError(f"this {type(model).__name__} has no solve; give an attractor model or a looped model.")
    return {"tolerance": model.model.default_tolerance if tolerance is None else tolerance}


@torch.no_grad()
def measure_internalisation(
    model: "LanguageModel",
    tokenizer: Any,
    documents: Iterable[str],
    *,
    depths: Sequence[int],
    length: int,
    tolerance: float | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Internalisation:
    """Compare every depth with the equilibrium on held-out text.

    Parameters
    ----------
    model, tokenizer
        An attractor model or a looped model in evaluation mode, and its tokenizer.
    documents
        Held-out text. The numbers agree with :func:`attractor.evaluation.score_text`.
    depths, length
        Numbers of evaluations, at least 0; number of tokens in the sliding window.
    advance
        Called as ``advance(done, total)`` with numbers of windows.

    Raises
    ------
    ConfigError
        For a model without a solve, and invalid depths or an invalid length.
    DataError
        When there is no text.
    """
    budget = default_budget(model, tolerance)
    if not depths or min(depths) < 0:
        raise ConfigError(f"depths {tuple(depths)}: give whole numbers from 0 up, at least one.")
    if not 2 <= length <= model.config.max_position_embeddings:
        raise ConfigError(f"length={length}: give 2 to {model.config.max_position_embeddings}, the model's positions.")
    depths, texts = sorted(set(depths)), list(documents)
    windows = [sliding_windows(encode(tokenizer, text), length, max(length // 2, 1)) for text in texts]
    if not any(windows):
        raise DataError("there is no text to measure; give documents that are not empty.")
    sums, tokens, num_verified = _measure_documents(model, windows, depths, budget, advance)
    num_tokens, num_bytes = sum(len(t.evaluations) for t in tokens), sum(len(text.encode()) for text in texts)
    points = []
    for depth, row in zip([*depths, None], sums.tolist(), strict=True):
        means = {name: value / num_tokens for name, value in zip(SUMS, row, strict=True)}
        bits_per_byte = means.pop("nats") * num_tokens / math.log(2) / num_bytes
        flops = model.flops_per_token(length, means["evaluations"])
        points.append(DepthStats(depth=depth, bits_per_byte=bits_per_byte, flops_per_token=flops, **means))
    num_below = sum(int((t.residual < budget.get("tolerance", 0)).sum()) for t in tokens)
    diagnostics = _mean_diagnostics(model, [ids for document in windows for ids, _ in document[:1]][:NUM_DIAGNOSED])
    return Internalisation(
        num_documents=len(texts),
        num_tokens=num_tokens,
        num_bytes=num_bytes,
        length=length,
        tolerance=budget.get("tolerance"),
        converged_fraction=num_below / num_tokens if "tolerance" in budget else None,
        verified_fraction=num_verified / num_tokens if "tolerance" in budget else None,
        points=tuple(points),
        tokens=tuple(tokens),
        gate=diagnostics.get("gate"),
        spectral_radius=diagnostics.get("spectral_radius"),
    )


def run_window(model: Any, ids: Tensor, budget: dict[str, float]) -> Any:
    """Return the model's output for one window (T,), with logits for its last token only.

    A random start is the same in every run, so that runs of different depths follow one trajectory.
    """
    device = input_device(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        return model(ids[None].to(device), use_cache=False, logits_to_keep=1, **budget)


def _measure_documents(
    model: Any,
    documents: Sequence[Sequence[tuple[Tensor, int]]],
    depths: Sequence[int],
    budget: dict[str, float],
    advance: Callable[[int, int], None],
) -> tuple[Tensor, list[TokenStats], int]:
    """Add up :func:`_measure_window` over the windows of all documents; the token statistics are per document."""
    sums = torch.zeros(len(depths) + 1, len(SUMS), dtype=torch.float64)
    tokens, done, total, num_verified = [], 0, sum(map(len, documents)), 0
    for windows in documents:
        parts = []
        for ids, start in windows:
            found, stats, verified = _measure_window(model, ids, slice(start - 1, len(ids) - 1), depths, budget)
            sums, num_verified, done = sums + found, num_verified + verified, done + 1
            parts.append(stats)
            advance(done, total)
        if parts:
            tokens.append(_concatenate(parts))
    return sums, tokens, num_verified


def _measure_window(
    model: Any, ids: Tensor, part: slice, depths: Sequence[int], budget: dict[str, float]
) -> tuple[Tensor, TokenStats, int]:
    """Return the sums named by ``SUMS`` over ``part`` of a window, a row per depth; the solves; and how many are verified."""
    own = [int(budget["depth"])] if "depth" in budget else []
    # A fixed number of evaluations measures the residual of the state before the last one, so run one more.
    runs = {d: run_window(model, ids, {"depth": d}) for d in sorted({n for d in (*depths, *own) for n in (d, d + 1)})}
    equilibrium = runs[own[0]] if own else run_window(model, ids, budget)
    last_residual = (runs[own[0] + 1] if own else equilibrium).solution.residual[0, part]
    outputs = [*(runs[d] for d in depths), equilibrium]
    residuals = [*(runs[d + 1].solution.residual[0, part] for d in depths), last_residual]
    sums = torch.zeros(len(outputs), len(SUMS), dtype=torch.float64)
    for row, (output, residual) in enumerate(zip(outputs, residuals, strict=True)):
        sums[row, 1] = output.solution.evaluations[0, part].sum()
        sums[row, 2] = residual.double().sum()
    targets = ids[1:][part].to(equilibrium.hidden.device)
    for first in range(0, len(targets), LOGITS_CHUNK):
        chunk = slice(first, first + LOGITS_CHUNK)
        reference = _log_probs(model, equilibrium.hidden[0, part][chunk])
        for row, output in enumerate(outputs):
            log_probs = reference if output is equilibrium else _log_probs(model, output.hidden[0, part][chunk])
            sums[row, 0] -= log_probs.gather(1, targets[chunk][:, None]).double().sum().cpu()
            sums[row, 3] += (reference.exp() * (reference - log_probs)).sum(dim=1).double().sum().cpu()
            sums[row, 4] += (log_probs.argmax(dim=1) == reference.argmax(dim=1)).sum().cpu()
    stats = TokenStats(
        evaluations=equilibrium.solution.evaluations[0, part].cpu(),
        residual=last_residual.cpu(),
        proposal_distance=_proposal_distance(model, equilibrium, part),
    )
    return sums, stats, int((equilibrium.solution.outcome.status[0, part] == Status.CONVERGED).sum())


def _log_probs(model: Any, hidden: Tensor) -> Tensor:
    return model.lm_head(model.model.norm(hidden)).float().log_softmax(dim=-1)


def _proposal_distance(model: Any, output: Any, part: slice) -> Tensor | None:
    if getattr(model.config, "start", None) != "proposal":
        return None
    proposal, equilibrium = output.proposal[0, part].float(), output.solution.value[0, part].float()
    return ((equilibrium - proposal).norm(dim=-1) / proposal.norm(dim=-1).clamp_min(1e-12)).cpu()


def _concatenate(parts: Sequence[TokenStats]) -> TokenStats:
    distances = [part.proposal_distance for part in parts if part.proposal_distance is not None]
    return TokenStats(
        evaluations=torch.cat([part.evaluations for part in parts]),
        residual=torch.cat([part.residual for part in parts]),
        proposal_distance=torch.cat(distances) if distances else None,
    )


def _mean_diagnostics(model: Any, windows: Sequence[Tensor]) -> dict[str, float]:
    device = input_device(model)
    with torch.enable_grad():  # the spectral radius needs Jacobian products
        found = [model.diagnostics(ids[None].to(device)) for ids in windows]
    return {name: math.fsum(each[name] for each in found) / len(found) for name in found[0]}
