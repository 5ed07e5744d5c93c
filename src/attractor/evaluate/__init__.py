"""Judging models: exact answers by depth and at rest, and pictures of both."""

from attractor.evaluate.pictures import draw_curves, draw_settling
from attractor.evaluate.puzzles import DepthPoint, Judgement, judge, settling

__all__ = ["DepthPoint", "Judgement", "draw_curves", "draw_settling", "judge", "settling"]
