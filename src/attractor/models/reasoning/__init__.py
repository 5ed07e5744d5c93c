"""Reasoners: the whole grid is answered at once, and the answer is refined until it rests."""

from attractor.models.reasoning.attractor import AttractorReasoner, AttractorReasonerConfig
from attractor.models.reasoning.reasoner import Reasoner, ReasonerConfig, ReasonerOutput

__all__ = ["AttractorReasoner", "AttractorReasonerConfig", "Reasoner", "ReasonerConfig", "ReasonerOutput"]
