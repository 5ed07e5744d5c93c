"""Reasoners: models that answer a whole grid at once and update the answer until it converges."""

from attractor.models.reasoning.attractor import AttractorReasoner, AttractorReasonerConfig
from attractor.models.reasoning.hrm import HRM, HRMConfig
from attractor.models.reasoning.reasoner import Reasoner, ReasonerConfig, ReasonerOutput
from attractor.models.reasoning.transformer import TransformerConfig, TransformerReasoner
from attractor.models.reasoning.trm import TRM, TRMConfig

__all__ = [
    "HRM",
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
