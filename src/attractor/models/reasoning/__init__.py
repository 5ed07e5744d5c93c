"""Reasoners: the whole grid is answered at once, and the answer is refined until it rests."""

from attractor.models.reasoning.attractor import AttractorReasoner, AttractorReasonerConfig, ReasonerOutput

__all__ = ["AttractorReasoner", "AttractorReasonerConfig", "ReasonerOutput"]
