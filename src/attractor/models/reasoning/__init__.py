"""Reasoners: models that answer a whole grid at once and update the answer until it converges."""

from attractor.models.reasoning.attractor import AttractorReasoner, AttractorReasonerConfig
from attractor.models.reasoning.eqr import EqR, EqRConfig
from attractor.models.reasoning.hrm import HRM, HRMConfig
from attractor.models.reasoning.reasoner import Reasoner, ReasonerConfig, ReasonerOutput
from attractor.models.reasoning.transformer import TransformerConfig, TransformerReasoner
from attractor.models.reasoning.trm import TRM, TRMConfig
from attractor.models.reasoning.trm_deq import TRMDEQ, TRMDEQConfig
from attractor.models.reasoning.two_part import TwoPartConfig, TwoPartReasoner

__all__ = [
    "HRM",
    "TRM",
    "TRMDEQ",
    "AttractorReasoner",
    "AttractorReasonerConfig",
    "EqR",
    "EqRConfig",
    "HRMConfig",
    "Reasoner",
    "ReasonerConfig",
    "ReasonerOutput",
    "TRMConfig",
    "TRMDEQConfig",
    "TransformerConfig",
    "TransformerReasoner",
    "TwoPartConfig",
    "TwoPartReasoner",
]
