"""Judging models: grids by depth and at rest, text by its bytes, language tasks; and pictures of what settles."""

from attractor.evaluate.breadth import Starts, auroc, exact, explore
from attractor.evaluate.calibrate import Calibration, Trial, calibrate
from attractor.evaluate.harness import harness
from attractor.evaluate.internalisation import Internalisation, Trajectories, measure_internalisation, trajectories
from attractor.evaluate.pictures import draw_curves, draw_settling, paint, paint_digits
from attractor.evaluate.puzzles import DepthPoint, Judgement, judge, settling
from attractor.evaluate.tasks import (
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
from attractor.evaluate.text import (
    Predictions,
    TextScore,
    encode,
    known_budget,
    log_probabilities,
    max_length,
    score_text,
)

__all__ = [
    "Calibration",
    "CoreScore",
    "DepthPoint",
    "Internalisation",
    "Judgement",
    "LambadaScore",
    "Predictions",
    "Starts",
    "Task",
    "TaskScore",
    "TextScore",
    "Trajectories",
    "Trial",
    "auroc",
    "calibrate",
    "core",
    "draw_curves",
    "draw_settling",
    "encode",
    "evaluate_task",
    "exact",
    "explore",
    "find_task",
    "harness",
    "judge",
    "known_budget",
    "lambada",
    "log_probabilities",
    "max_length",
    "measure_internalisation",
    "paint",
    "paint_digits",
    "read_tasks",
    "score_text",
    "settling",
    "trajectories",
]
