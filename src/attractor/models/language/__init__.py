"""Causal language models. Importing this package registers them with the Auto classes of ``transformers``."""

from attractor.errors import requires_extra

with requires_extra("language"):
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    from attractor.models.language.attractor import AttractorConfig, AttractorForCausalLM, AttractorModel
    from attractor.models.language.base import LanguageModel, LanguageModelOutput
    from attractor.models.language.config import LanguageModelConfig
    from attractor.models.language.looped import LoopedConfig, LoopedForCausalLM, LoopedModel

for _config, _decoder, _model in (
    (AttractorConfig, AttractorModel, AttractorForCausalLM),
    (LoopedConfig, LoopedModel, LoopedForCausalLM),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _decoder)
    AutoModelForCausalLM.register(_config, _model)
    # Registration reaches the Auto classes only. Trainer's label smoothing, pipelines, model cards and servers look for
    # the class's name here.
    MODEL_MAPPING_NAMES[_config.model_type] = _decoder.__name__
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[_config.model_type] = _model.__name__

__all__ = [
    "AttractorConfig",
    "AttractorForCausalLM",
    "AttractorModel",
    "LanguageModel",
    "LanguageModelConfig",
    "LanguageModelOutput",
    "LoopedConfig",
    "LoopedForCausalLM",
    "LoopedModel",
]
