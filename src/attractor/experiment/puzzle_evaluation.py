"""Evaluate a reasoner on puzzles, by depth and by breadth."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attractor.data import SUDOKU, PuzzleSet, puzzles
from attractor.data.arc import Name
from attractor.data.sudoku import deduce
from attractor.errors import ConfigError, DataError
from attractor.evaluation import (
    Restarts,
    SearchResult,
    auroc,
    binomial_interval,
    check_selections,
    exact,
    pass_at_k,
    run_restarts,
    run_search,
)
from attractor.experiment.puzzles import as_tensors, names_checksum
from attractor.experiment.solve import LoadedReasoner
from attractor.progress import TaskProgress

Figures = dict[str, Any]
RATINGS = (0.0, 0.5, 2.0, 8.0, float("inf"))  # the bounds of ``by_rating``


def held_out_puzzles(loaded: LoadedReasoner, data: Any, limit: int | None) -> PuzzleSet:
    """Return the split ``test`` of a folder, the puzzles of a csv file, or the given puzzles, of the model's kind."""
    if isinstance(data, PuzzleSet):
        found, place = data, "these"
    else:
        paths = [Path(data)] if isinstance(data, str | Path) else [Path(path) for path in data]
        if len(paths) != 1:
            raise ConfigError(
                "a reasoner is evaluated on one set of puzzles; give a prepared folder, or a csv, with --data."
            )
        place = str(paths[0])
        is_csv = paths[0].suffix.lower() == ".csv" and not paths[0].is_dir()
        found = loaded.puzzle.read_table(paths[0]) if is_csv else puzzles.read(paths[0], "test")
    if found.kind != loaded.puzzle.kind:
        raise DataError(
            f"{place}: holds puzzles of the kind {found.kind}; this model was trained on {loaded.puzzle.kind}."
        )
    _check_names(loaded, found, place)
    return found[slice(limit) if found.names is None else _first_tasks(found, limit)]


def _first_tasks(found: PuzzleSet, limit: int | None) -> NDArray[np.bool_]:
    """Return which puzzles are copies of the first ``limit`` tasks, (N,) bool: a part of the votes tells nothing."""
    tasks = [Name.parse(name).task for name in found.all_names]
    kept = set(list(dict.fromkeys(tasks[n] for n in found.names))[:limit])  # type: ignore[union-attr]
    return np.isin(found.names, [n for n, task in enumerate(tasks) if task in kept])  # type: ignore[arg-type]


def _check_names(loaded: LoadedReasoner, found: PuzzleSet, place: str) -> None:
    """Raise a DataError if puzzles have other names than those that the model was trained with."""
    num = getattr(loaded.model.config, "num_names", 1)
    known, given = loaded.names_checksum, names_checksum(found)
    if found.names is None and num > 1:
        raise DataError(
            f"{place}: these puzzles have no names, and the model has {num}; give the folder it was trained on."
        )
    if found.names is not None and (num != len(found.all_names) or known not in (None, given)):
        raise DataError(
            f"{place}: its {len(found.all_names)} puzzle names are not the {num} of this model; give the folder it was "
            "trained on, or make one with attractor data arc --names."
        )


def evaluate_puzzles(
    loaded: LoadedReasoner,
    data: PuzzleSet,
    *,
    depths: Sequence[int],
    breadths: Sequence[int],
    selections: Sequence[str],
    noise: float | None = None,
    halting: str = "none",
    batch_size: int,
    seed: int,
    search: bool = False,
    progress: bool = False,
) -> Figures:
    """Return the accuracy by breadth and depth, and how well each score tells right answers from wrong ones.

    ``exact_by_residual``, or another selection in place of ``residual``, are fractions of answers equal to the known
    one in every cell, chosen among the restarts; rows are breadths and columns are depths. ``interval_by_…`` are their
    binomial intervals of 95 %, for puzzles without names, ``any_exact`` the fractions of puzzles that some restart
    answers right, and ``evaluations`` the mean evaluations for a puzzle over all restarts. ``right_by_residual`` also
    counts other correct answers, for puzzles that can have several. ``median_residual`` and ``residual_auroc`` are
    those of the first start.

    ``search`` has the accuracy, evaluations and guesses of :func:`attractor.evaluation.run_search`. ``by_rating``, for
    puzzles with ratings, has the accuracy of one start, of all restarts by the first selection, and of the search, at the
    last depth. ``pass@1`` and ``pass@2``, for ARC, are the scores of the tasks by the votes of all copies of each test
    input, restarts included, at the last depth.
    """
    if search and loaded.puzzle.kind != SUDOKU.kind:
        raise ConfigError(f"search guesses digits of Sudokus; leave it out for puzzles of the kind {data.kind}.")
    loaded.model.check_restarts(max(breadths), noise)
    check_selections(loaded.model, selections, halting)
    torch.manual_seed(seed)
    questions, truth = as_tensors(data)
    device = next(loaded.model.parameters()).device
    with TaskProgress(enabled=progress) as bars:
        restarts = run_restarts(
            loaded.model,
            questions.to(device),
            depths=depths,
            breadth=max(breadths),
            noise=noise,
            halting=halting,
            batch_size=batch_size,
            advance=bars.count("puzzles", max(breadths) * len(data)),
        )
    right = exact(restarts.answers, truth)  # (K, depths, N)
    figures: Figures = {
        "num_puzzles": len(data),
        "depths": list(depths),
        "breadths": list(breadths),
        "selections": list(selections),
        "any_exact": [right[:breadth].any(dim=0).float().mean(dim=1).tolist() for breadth in breadths],
        "evaluations": [restarts.evaluations[:b].sum(dim=0).mean(dim=1).tolist() for b in breadths],
        "median_residual": [float(r) for r in restarts.residual[0].median(dim=1).values],
    }
    for name, score in restarts.scores.items():
        key = name.replace("-", "_")
        figures[f"{key}_auroc"] = [auroc(-s, e) for s, e in zip(score[0], right[0], strict=True)]
    for selection in selections:
        chosen = [restarts.select(selection, breadth) for breadth in breadths]
        figures |= _by_selection(selection.replace("-", "_"), chosen, data, truth)
    by_way = {"one_start": right[0, -1]}
    if max(breadths) > 1:
        by_way["restarts"] = exact(restarts.select(selections[0], max(breadths))[-1], truth)
    if search:
        with TaskProgress(enabled=progress) as bars:
            advance = bars.count("searched puzzles", len(data))
            found = run_search(loaded.model, questions.to(device), deduce, batch_size=batch_size, advance=advance)
        by_way["search"] = exact(found.answers, truth)
        figures["search"] = _share(by_way["search"]) | _costs(found)
    votes = {} if data.names is None else _votes(data, restarts)
    return figures | votes | ({} if data.ratings is None else {"by_rating": _by_rating(data.ratings, by_way)})


def _by_selection(name: str, chosen: Sequence[Tensor], data: PuzzleSet, truth: Tensor) -> Figures:
    """Return the accuracy of the ``chosen`` answers (depths, N, H, W) of each breadth."""
    right = [exact(answers, truth) for answers in chosen]
    figures: Figures = {
        f"exact_by_{name}": [by_depth.float().mean(dim=1).tolist() for by_depth in right],
    }
    if data.names is None:  # copies of a puzzle are not independent
        figures[f"interval_by_{name}"] = [
            [binomial_interval(int(one.sum()), len(one)) for one in by_depth] for by_depth in right
        ]
    if not data.puzzle.has_unique_answer:
        figures[f"right_by_{name}"] = [
            [float(data.puzzle.is_right(data.questions, found.numpy(), data.answers).mean()) for found in answers]
            for answers in chosen
        ]
    return figures


def _votes(data: PuzzleSet, restarts: Restarts) -> Figures:
    halting = restarts.scores.get("halting-logit")  # the means are of probabilities, as in TRM's evaluation
    score = (restarts.residual if halting is None else halting.double().sigmoid())[:, -1]
    copies = np.tile(np.arange(len(data)), len(score))
    return pass_at_k(data[copies], restarts.answers[:, -1].flatten(0, 1), score.flatten())


def _share(right: Tensor) -> Figures:
    return {"exact": float(right.double().mean()), "interval": binomial_interval(int(right.sum()), len(right))}


def _costs(found: SearchResult) -> Figures:
    evaluations = found.evaluations.double()
    summary = {"mean": evaluations.mean(), "median": evaluations.median(), "max": evaluations.max()}
    summary["quantile_90"] = evaluations.quantile(0.9)
    costs = {name: float(value) for name, value in summary.items()}
    return {"evaluations": costs, "guesses": float(found.guesses.double().mean())}


def _by_rating(ratings: NDArray[Any], by_way: dict[str, Tensor]) -> list[Figures]:
    """Return the shares of right answers (N,) of each way to choose them, between the bounds ``RATINGS``."""
    rows = []
    for low, high in pairwise(RATINGS):
        inside = torch.from_numpy((ratings >= low) & (ratings < high))
        if inside.any():
            bounds = {"from": low, "below": high if high < float("inf") else None}
            shares = {name: _share(right[inside]) for name, right in by_way.items()}
            rows.append({**bounds, "num_puzzles": int(inside.sum()), **shares})
    return rows
