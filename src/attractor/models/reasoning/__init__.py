"""Reasoners: the whole grid is answered at once, and the answer is refined until it rests."""

from attractor.models.reasoning.attractor import AttractorReasoner, AttractorReasonerConfig
from attractor.models.reasoning.hrm import HRM, HRMConfig
from attractor.models.reasoning.reasoner import ONE_START, Reasoner, ReasonerConfig, ReasonerOutput
from attractor.models.reasoning.transformer import TransformerConfig, TransformerReasoner
from attractor.models.reasoning.trm import TRM, TRMConfig

__all__ = [
    "HRM",
    "ONE_START",
    "TRM",
    "AttractorReasoner",
    "AttractorReasonerConfig",
    "HRMConfig",
    "Reasoner",
    "ReasonerConfig",
    "ReasonerOutput",
    "TRMConfig",
    "TransformerConfig",
    "TransformerReasoner",
]
