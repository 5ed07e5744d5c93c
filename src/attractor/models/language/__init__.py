"""Causal language models. Importing this package registers them with the Auto classes of ``transformers``."""

from attractor.errors import requires_extra

with requires_extra("language"):
    from transformers import AutoConfig, AutoModelForCausalLM

    from attractor.models.language.attractor import AttractorConfig, AttractorForCausalLM
    from attractor.models.language.base import LanguageModel, LanguageModelOutput
    from attractor.models.language.config import LanguageModelConfig
    from attractor.models.language.looped import LoopedConfig, LoopedForCausalLM

AutoConfig.register(AttractorConfig.model_type, AttractorConfig)
AutoConfig.register(LoopedConfig.model_type, LoopedConfig)
AutoModelForCausalLM.register(AttractorConfig, AttractorForCausalLM)
AutoModelForCausalLM.register(LoopedConfig, LoopedForCausalLM)

__all__ = [
    "AttractorConfig",
    "AttractorForCausalLM",
    "LanguageModel",
    "LanguageModelConfig",
    "LanguageModelOutput",
    "LoopedConfig",
    "LoopedForCausalLM",
]
