"""Evaluation: puzzles by depth and breadth, text by its bytes, language tasks. Numbers only."""

from attractor.evaluation.calibrate import BudgetScore, Calibration, calibrate
from attractor.evaluation.core import (
    CoreScore,
    LambadaScore,
    Task,
    TaskScore,
    core,
    evaluate_task,
    find_task,
    lambada,
    read_tasks,
)
from attractor.evaluation.harness import harness
from attractor.evaluation.internalisation import Internalisation, Trajectories, measure_internalisation, trajectories
from attractor.evaluation.puzzles import DepthEvaluation, DepthPoint, evaluate_depths, trajectory
from attractor.evaluation.restarts import Restarts, auroc, exact, run_restarts
from attractor.evaluation.text import (
    Predictions,
    TextScore,
    encode,
    known_budget,
    log_probabilities,
    max_length,
    score_text,
)

__all__ = [
    "BudgetScore",
    "Calibration",
    "CoreScore",
    "DepthEvaluation",
    "DepthPoint",
    "Internalisation",
    "LambadaScore",
    "Predictions",
    "Restarts",
    "Task",
    "TaskScore",
    "TextScore",
    "Trajectories",
    "auroc",
    "calibrate",
    "core",
    "encode",
    "evaluate_depths",
    "evaluate_task",
    "exact",
    "find_task",
    "harness",
    "known_budget",
    "lambada",
    "log_probabilities",
    "max_length",
    "measure_internalisation",
    "read_tasks",
    "run_restarts",
    "score_text",
    "trajectories",
    "trajectory",
]
