"""Evaluate a reasoner on puzzles, by depth and by breadth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from attractor.data import PuzzleSet, puzzles
from attractor.errors import ConfigError, DataError
from attractor.evaluation import auroc, binomial_interval, check_selections, exact, run_restarts
from attractor.experiment.puzzles import as_tensors
from attractor.experiment.solve import LoadedReasoner
from attractor.progress import TaskProgress

Figures = dict[str, Any]


def require_rising(**lists: Sequence[int]) -> None:
    """Raise a ConfigError for a list that is not rising whole numbers from 1 up."""
    for name, values in lists.items():
        if min(values) < 1 or sorted(set(values)) != list(values):
            raise ConfigError(f"{name} {' '.join(map(str, values))}: give rising whole numbers from 1 up.")


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
    return found[slice(limit)]


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
    progress: bool = False,
) -> Figures:
    """Return the accuracy by breadth and depth, and how well each score tells right answers from wrong ones.

    ``exact_by_residual``, or another selection in place of ``residual``, are fractions of answers equal to the known one
    in every cell, chosen among the restarts; rows are breadths and columns are depths. ``interval_by_…`` are their
    binomial intervals of 95 %, ``any_exact`` the fractions of puzzles that some restart answers right, and
    ``evaluations`` the mean evaluations for a puzzle over all restarts. ``right_by_residual`` also counts other correct
    answers, for puzzles that can have several. ``median_residual`` and ``residual_auroc`` are those of the first start.
    """
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
        name = selection.replace("-", "_")
        chosen = [exact(restarts.select(selection, breadth), truth) for breadth in breadths]
        figures[f"exact_by_{name}"] = [by_depth.float().mean(dim=1).tolist() for by_depth in chosen]
        figures[f"interval_by_{name}"] = [
            [binomial_interval(int(one.sum()), len(one)) for one in by_depth] for by_depth in chosen
        ]
        if not loaded.puzzle.has_unique_answer:
            figures[f"right_by_{name}"] = [
                [
                    float(loaded.puzzle.is_right(data.questions, found.numpy(), data.answers).mean())
                    for found in restarts.select(selection, breadth)
                ]
                for breadth in breadths
            ]
    return figures
