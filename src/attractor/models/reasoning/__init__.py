"""Reasoners: models that answer a whole grid at once and update the answer until it converges."""

from attractor.models.reasoning.attractor import AttractorReasoner, AttractorReasonerConfig
from attractor.models.reasoning.published import (
    HRM,
    TRM,
    HRMConfig,
    TransformerConfig,
    TransformerReasoner,
    TRMConfig,
)
from attractor.models.reasoning.reasoner import Reasoner, ReasonerConfig, ReasonerOutput

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
