"""Evaluation: puzzles by depth and breadth, text in bits per byte, language tasks, internalisation. Numbers only."""

from attractor.evaluation.bundle import Task, find_task, read_tasks
from attractor.evaluation.calibrate import BudgetScore, Calibration, calibrate
from attractor.evaluation.core import CoreScore, LambadaScore, TaskScore, core, evaluate_task, lambada
from attractor.evaluation.harness import harness
from attractor.evaluation.internalisation import DepthStats, Internalisation, TokenStats, measure_internalisation
from attractor.evaluation.puzzles import DepthEvaluation, DepthPoint, evaluate_depths, trajectory
from attractor.evaluation.restarts import (
    Restarts,
    auroc,
    binomial_interval,
    check_selections,
    exact,
    run_restarts,
)
from attractor.evaluation.search import SearchResult, run_search
from attractor.evaluation.text import (
    DEFAULT_WINDOW,
    TextScore,
    TokenScores,
    encode,
    known_budget,
    max_length,
    score_text,
    score_tokens,
)
from attractor.evaluation.trajectories import Trajectories, trajectories
from attractor.evaluation.voting import pass_at_k

__all__ = [
    "DEFAULT_WINDOW",
    "BudgetScore",
    "Calibration",
    "CoreScore",
    "DepthEvaluation",
    "DepthPoint",
    "DepthStats",
    "Internalisation",
    "LambadaScore",
    "Restarts",
    "SearchResult",
    "Task",
    "TaskScore",
    "TextScore",
    "TokenScores",
    "TokenStats",
    "Trajectories",
    "auroc",
    "binomial_interval",
    "calibrate",
    "check_selections",
    "core",
    "encode",
    "evaluate_depths",
    "evaluate_task",
    "exact",
    "find_task",
    "harness",
    "known_budget",
    "lambada",
    "max_length",
    "measure_internalisation",
    "pass_at_k",
    "read_tasks",
    "run_restarts",
    "run_search",
    "score_text",
    "score_tokens",
    "trajectories",
    "trajectory",
]
