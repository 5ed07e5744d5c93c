"""What a language model does between its proposal and its equilibrium.

Trained on what it predicts at the equilibrium alone, a model comes to propose nearly what it would settle on, so that few
evaluations or none lose little: *equilibrium internalisation* ("Solve the Loop", arXiv:2605.12466). Here it is measured on held-out
text, through the forward pass and nothing else, so that the looped baseline is measured alike.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attractor.errors import ConfigError, DataError
from attractor.evaluation.text import encode, sliding_windows
from attractor.models.language import AttractorForCausalLM, LanguageModel, LoopedForCausalLM
from attractor.solve import Status

CHUNK = 128  # tokens of which logits exist at a time
PROBED = 4  # windows of which the spectral radius is taken
COLUMNS = 5  # sums per depth: nats, evaluations, residual, divergence, agreement


@dataclass(frozen=True, kw_only=True)
class DepthFigures:
    """Means over all scored tokens at one depth.

    Attributes
    ----------
    depth
        Evaluations; None for how the model is used: at rest, or a looped model after its own number of iterations.
    bits_per_byte
        Of the text, counting its bytes of UTF-8.
    evaluations
        Per token, those it used.
    residual
        ``‖update(y) − y‖ / ‖y‖`` at the state that is decoded (the last that the solver accepted).
    flops_per_token
        Two per multiply-add, for that many evaluations of every token.
    divergence
        ``KL(p_rest ‖ p_depth)`` in nats per token.
    agreement
        Share of tokens after which the likeliest next token is the same as at rest.
    """

    depth: int | None
    bits_per_byte: float
    evaluations: float
    residual: float
    flops_per_token: float
    divergence: float
    agreement: float


@dataclass(frozen=True, kw_only=True)
class TokenFigures:
    """The solve of every scored token, T of them: the end-of-text token before a passage, and all of it but the last token.

    Attributes
    ----------
    evaluations, residual
        (T,) int64 and float32, on the CPU.
    distance
        ``‖y* − c‖ / ‖c‖`` (T,); None where the solve does not start at a proposal ``c``.
    """

    evaluations: Tensor
    residual: Tensor
    distance: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Internalisation:
    """See the module's text.

    Attributes
    ----------
    num_documents, num_tokens, num_bytes
        What was scored.
    length
        Tokens of the sliding window, which moves by half of that.
    tolerance
        Residual at which a token was at rest; None for looped models, which run a fixed number of iterations.
    final
        Share of tokens whose solve ended below it; None likewise.
    points
        By depth; the last is at rest.
    tokens
        Of every document that is not empty.
    gate, spectral_radius
        Mean gate of the attractor's layers, and spectral radius of the update at the equilibrium of the first windows; None
        where the model tells none.
    """

    num_documents: int
    num_tokens: int
    num_bytes: int
    length: int
    tolerance: float | None
    final: float | None
    points: tuple[DepthFigures, ...]
    tokens: tuple[TokenFigures, ...]
    gate: float | None
    spectral_radius: float | None

    @property
    def rest(self) -> DepthFigures:
        """How the model is used."""
        return self.points[-1]

    @property
    def distance(self) -> float | None:
        """Mean ``‖y* − c‖ / ‖c‖``."""
        found = [t.distance for t in self.tokens if t.distance is not None]
        return float(torch.cat(found).double().mean()) if found else None


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """What ``depth`` evaluations do to some tokens when none of them stops early.

    Attributes
    ----------
    residual
        (depth + 1, N): at the state after 0, 1, … evaluations, of all tokens that were read.
    paths
        (depth + 1, M, 2): the states of M of them on the two principal components of all those states.
    moves
        (depth + 1, M, 2): the same for the states' distance from where each of them ends.
    explained, explained_moves
        Shares of the variance that the components hold.
    """

    residual: Tensor
    paths: Tensor
    moves: Tensor
    explained: tuple[float, float]
    explained_moves: tuple[float, float]


def passage(text: str, size: int, rng: random.Random) -> str:
    """Return at most ``size`` characters of ``text`` from a random place on, where it can be from the beginning of a line."""
    if len(text) <= size:
        return text
    begin = rng.randrange(len(text) - size)
    cut = text[text.find("\n", begin, begin + size // 2) + 1 or begin :][:size]
    return cut.strip() or cut


def default_budget(model: Any, tolerance: float | None) -> dict[str, float]:
    """Return the keywords of ``forward`` by which the model is used: to a tolerance, or as many iterations as it was trained with.

    Raises
    ------
    ConfigError
        For models that solve nothing, and for a tolerance that means nothing to a looped model.
    """
    if isinstance(model, LoopedForCausalLM):
        if tolerance is not None:
            raise ConfigError("a looped model runs a fixed number of iterations; leave out the tolerance.")
        return {"depth": model.config.mean_recurrence}
    if not isinstance(model, AttractorForCausalLM) or not model.config.num_attractor_layers:
        raise ConfigError(f"this {type(model).__name__} solves nothing; give an attractor or a looped model.")
    if tolerance is None:
        return {"tolerance": model.config.tolerance}
    return {"tolerance": tolerance}


@torch.no_grad()
def measure_internalisation(
    model: LanguageModel,
    tokenizer: Any,
    documents: Iterable[str],
    *,
    depths: Sequence[int],
    length: int,
    tolerance: float | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Internalisation:
    """Read every document at every depth and at rest.

    Parameters
    ----------
    model, tokenizer
        An attractor or a looped model in evaluation mode, and its tokenizer.
    documents
        Held-out text; tokens are predicted as by :func:`attractor.evaluation.score_text`, so that figures agree.
    depths
        Numbers of evaluations, from 0 up.
    length
        Tokens of the sliding window.
    tolerance
        Instead of the model's.
    advance
        Told how many windows of how many are done.

    Raises
    ------
    ConfigError
        For a model that solves nothing, and depths or a length that cannot work.
    DataError
        Where there is no text.
    """
    budget = default_budget(model, tolerance)
    if not depths or min(depths) < 0:
        raise ConfigError(f"depths {tuple(depths)}: give whole numbers from 0 up, at least one.")
    if not 2 <= length <= model.config.max_position_embeddings:
        raise ConfigError(f"length={length}: give 2 to {model.config.max_position_embeddings}, the model's positions.")
    depths = sorted(set(depths))
    texts = list(documents)
    windows = [sliding_windows(encode(tokenizer, text), length, max(length // 2, 1)) for text in texts]
    total = sum(map(len, windows))
    if not total:
        raise DataError("there is no text to look at; give documents that are not empty.")
    sums = torch.zeros(len(depths) + 1, COLUMNS, dtype=torch.float64)
    tokens, done, num_final = [], 0, 0
    for document in windows:
        parts = []
        for ids, start in document:
            found, part, is_final = _read(model, ids, slice(start - 1, len(ids) - 1), depths, budget)
            sums, num_final, done = sums + found, num_final + is_final, done + 1
            parts.append(part)
            advance(done, total)
        if parts:
            tokens.append(_joined(parts))
    num_tokens = sum(len(t.evaluations) for t in tokens)
    num_bytes = sum(len(text.encode()) for text in texts)

    def figures(depth: int | None, row: list[float]) -> DepthFigures:
        nats, evaluations, residual, divergence, agreement = (value / num_tokens for value in row)
        return DepthFigures(
            depth=depth,
            bits_per_byte=nats * num_tokens / math.log(2) / num_bytes,
            evaluations=evaluations,
            residual=residual,
            flops_per_token=model.flops_per_token(length, evaluations),
            divergence=divergence,
            agreement=agreement,
        )

    inside = _inside(model, [ids for document in windows for ids, _ in document[:1]][:PROBED])
    return Internalisation(
        num_documents=len(texts),
        num_tokens=num_tokens,
        num_bytes=num_bytes,
        length=length,
        tolerance=budget.get("tolerance"),
        final=num_final / num_tokens if "tolerance" in budget else None,
        points=tuple(figures(*row) for row in zip([*depths, None], sums.tolist(), strict=True)),
        tokens=tuple(tokens),
        gate=inside.get("gate"),
        spectral_radius=inside.get("spectral_radius"),
    )


@torch.no_grad()
def trajectories(
    model: LanguageModel,
    windows: Sequence[Tensor],
    *,
    depth: int,
    num: int = 36,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Trajectories:
    """Follow the tokens of ``windows``, each (T,) int64, from where a solve starts through ``depth`` evaluations.

    ``num`` of them, chosen by ``seed``, are followed in two dimensions. ``advance`` is told how many windows of how many are done.

    Raises
    ------
    ConfigError
        For a model that solves nothing, or a depth below 1.
    DataError
        Where there are no tokens, or all diverge to values that are not finite.
    """
    default_budget(model, None)
    if depth < 1:
        raise ConfigError(f"depth={depth}: give a whole number from 1 up.")
    if not windows:
        raise DataError("there are no tokens to follow; give documents that are not empty.")
    states, residuals = [], []
    for ids in windows:
        # One run per depth: its value is the state after so many evaluations, its residual that of the state before.
        runs = [_run(model, ids, {"depth": d}).solution for d in range(depth + 2)]
        states.append(torch.stack([run.value[0].float() for run in runs[:-1]]))
        residuals.append(torch.stack([run.residual[0] for run in runs[1:]]))
        advance(len(states), len(windows))
    residual = torch.cat(residuals, dim=1).cpu()
    usable = torch.cat(states, dim=1)
    usable = usable[:, usable.isfinite().all(dim=2).all(dim=0)]  # others have no place in a plane
    if not usable.shape[1]:
        raise DataError("no token keeps finite states through the evaluations, so there is nothing to follow.")
    order = torch.randperm(usable.shape[1], generator=torch.Generator().manual_seed(seed))
    chosen = usable[:, order[:num].to(usable.device)].cpu()  # (depth + 1, M, D)
    paths, explained = _components(chosen)
    moves, explained_moves = _components(chosen - chosen[-1], centre=False)
    return Trajectories(
        residual=residual, paths=paths, moves=moves, explained=explained, explained_moves=explained_moves
    )


def pieces(tokenizer: Any, text: str) -> list[str]:
    """Return the text of every token of ``text``, which together are the text. A character in several tokens goes to the first.

    Raises
    ------
    ConfigError
        For tokenizers that do not know where in a text their tokens stand.
    """
    if not tokenizer.is_fast:
        raise ConfigError(f"{type(tokenizer).__name__}: cannot tell where its tokens stand; give a tokenizer.json.")
    found = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, verbose=False, return_offsets_mapping=True
    )
    parts, last = [], 0
    for _, end in found["offset_mapping"]:
        parts.append(text[last:end])
        last = max(last, end)
    return parts


def _run(model: Any, ids: Tensor, budget: dict[str, float]) -> Any:
    device = next(model.parameters()).device
    # The last token's logits alone: what else is needed of them is made in chunks.
    return model(ids[None].to(device), use_cache=False, logits_to_keep=1, **budget)


def _read(
    model: Any, ids: Tensor, part: slice, depths: Sequence[int], budget: dict[str, float]
) -> tuple[Tensor, TokenFigures, int]:
    """Return sums over the tokens in ``part`` of a window (T,), a row per depth, then at rest; their solves; how many are final."""
    own = [int(budget["depth"])] if "depth" in budget else []
    runs = {d: _run(model, ids, {"depth": d}) for d in sorted({n for d in (*depths, *own) for n in (d, d + 1)})}
    rest = runs[own[0]] if own else _run(model, ids, budget)

    def residual(depth: int) -> Tensor:
        return runs[depth + 1].solution.residual[0, part]  # a fixed number of steps measures the state before the last

    settled = residual(own[0]) if own else rest.solution.residual[0, part]
    solves = [(runs[d], residual(d)) for d in depths] + [(rest, settled)]
    targets = ids[1:][part].to(rest.hidden.device)
    sums = torch.zeros(len(solves), COLUMNS, dtype=torch.float64)
    for row, (output, size) in enumerate(solves):
        sums[row, 1] = output.solution.evaluations[0, part].sum()
        sums[row, 2] = size.double().sum()
    for first in range(0, len(targets), CHUNK):
        here = slice(first, first + CHUNK)
        target = targets[here]
        at_rest = _log_probabilities(model, rest.hidden[0, part][here])
        for row, (output, _) in enumerate(solves):
            log = at_rest if output is rest else _log_probabilities(model, output.hidden[0, part][here])
            sums[row, 0] -= log.gather(1, target[:, None]).double().sum().cpu()
            sums[row, 3] += (at_rest.exp() * (at_rest - log)).sum(dim=1).double().sum().cpu()
            sums[row, 4] += (log.argmax(dim=1) == at_rest.argmax(dim=1)).sum().cpu()
    tokens = TokenFigures(
        evaluations=rest.solution.evaluations[0, part].cpu(),
        residual=settled.cpu(),
        distance=_distance(model, rest, part),
    )
    return sums, tokens, int((rest.solution.outcome.status[0, part] == Status.CONVERGED).sum())


def _log_probabilities(model: Any, hidden: Tensor) -> Tensor:
    return model.lm_head(model.model.norm(hidden)).float().log_softmax(dim=-1)


def _distance(model: Any, output: Any, part: slice) -> Tensor | None:
    if getattr(model.config, "start", None) != "proposal":
        return None
    start, end = output.proposal[0, part].float(), output.solution.value[0, part].float()
    return ((end - start).norm(dim=-1) / start.norm(dim=-1).clamp_min(1e-12)).cpu()


def _joined(parts: Sequence[TokenFigures]) -> TokenFigures:
    distances = [part.distance for part in parts if part.distance is not None]
    return TokenFigures(
        evaluations=torch.cat([part.evaluations for part in parts]),
        residual=torch.cat([part.residual for part in parts]),
        distance=torch.cat(distances) if distances else None,
    )


def _inside(model: Any, windows: Sequence[Tensor]) -> dict[str, float]:
    """Return what the model tells of itself, a mean over ``windows``."""
    device = next(model.parameters()).device
    with torch.enable_grad():
        told = [model.diagnostics(ids[None].to(device)) for ids in windows]
    return {name: math.fsum(one[name] for one in told) / len(told) for name in told[0]}


def _components(states: Tensor, *, centre: bool = True) -> tuple[Tensor, tuple[float, float]]:
    """Return the two principal components of states (K, M, D) as (K, M, 2), and the share of the variance each holds."""
    flat = states.flatten(0, 1).double()
    flat = flat - flat.mean(dim=0) if centre else flat
    u, s, _ = torch.linalg.svd(flat, full_matrices=False)
    two = (u * s)[:, :2]
    if two.shape[1] < 2:
        two = torch.nn.functional.pad(two, (0, 2 - two.shape[1]))
    shares = [*(s.square() / s.square().sum().clamp_min(1e-300)).tolist(), 0.0][:2]
    return two.view(*states.shape[:2], 2).float(), (shares[0], shares[1])
