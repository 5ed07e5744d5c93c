"""ARC: the votes of all symmetric copies of a test input on its answer, and pass@K."""

from collections import defaultdict

from torch import Tensor

from attractor.data import PuzzleSet
from attractor.data.arc import Name, read_grid
from attractor.data.puzzle import Grid

PASSES = (1, 2)  # attempts


def pass_at_k(puzzles: PuzzleSet, answers: Tensor, score: Tensor) -> dict[str, float]:
    """Return ``{"pass@1": …, "pass@2": …}``, the score of the tasks with so many attempts at each test input.

    Every copy of a test input votes for its answer, turned back; attempts are the answers with the most votes, and of equally
    frequent ones those with the lowest mean score. A task counts as the share of its test inputs that are right (TRM's
    evaluation).

    Parameters
    ----------
    puzzles
        Copies of test inputs, with names.
    answers
        (N, H, W), an answer to each.
    score
        (N,), low for an answer that is probably right.
    """
    assert puzzles.names is not None
    votes: dict[tuple[str, bytes], dict[bytes, list[float]]] = defaultdict(lambda: defaultdict(list))
    truth: dict[tuple[str, bytes], bytes] = {}
    for question, label, answer, name_id, s in zip(
        puzzles.questions, puzzles.answers, answers.numpy(), puzzles.names, score.tolist(), strict=True
    ):
        name = Name.parse(puzzles.all_names[name_id])
        asked, right, given = (_key(name, cells) for cells in (question, label, answer))
        votes[name.task, asked][given].append(s)
        truth[name.task, asked] = right
    found: dict[str, float] = {}
    for k in PASSES:
        by_task: dict[str, list[bool]] = defaultdict(list)
        for group, candidates in votes.items():
            ranked = sorted(candidates, key=lambda c: (-len(candidates[c]), sum(candidates[c]) / len(candidates[c])))
            by_task[group[0]].append(truth[group] in ranked[:k])
        found[f"pass@{k}"] = sum(sum(right) / len(right) for right in by_task.values()) / len(by_task)
    return found


def _key(name: Name, cells: Grid) -> bytes:
    """Return the grid in ``cells``, turned back, as bytes that tell grids apart."""
    grid = name.transform.undo(read_grid(cells))
    return bytes(grid.shape) + grid.tobytes() if grid.size else b""
