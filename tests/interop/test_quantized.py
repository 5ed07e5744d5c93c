"""Weight-only quantisation with torchao: a quantised model solves, and its logits stay near those of the original."""

import pytest
import torch
from tests.small_models import SIZES, randomised
from transformers import AutoModelForCausalLM, TorchAoConfig

from attractor.errors import ConfigError
from attractor.interop import to_stock
from attractor.models.language import AttractorConfig, AttractorForCausalLM

torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
IDS = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(0))
BUDGETS = ({"depth": 1}, {"tolerance": 1e-3, "max_evaluations": 60})


def test_quantised_weights_solve_and_generate(tmp_path) -> None:
    """Loaded as any model of transformers: 8 bits are nearer to the original than 4 bits, and every token converges."""
    sizes = {**SIZES, "hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    model = randomised(AttractorForCausalLM(AttractorConfig(**sizes, num_attractor_layers=1)))
    model.save_pretrained(tmp_path)
    four_bits = torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=torchao.PerGroup(32))
    errors = []
    for settings in (torchao.Int8WeightOnlyConfig(), four_bits):
        quantised = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=TorchAoConfig(settings)).eval()
        with torch.no_grad():
            for budget in BUDGETS:
                wanted, found = model(IDS, **budget), quantised(IDS, **budget)
                errors.append(float((found.logits - wanted.logits).std() / wanted.logits.std()))
            assert (found.solution.residual <= 1e-3).all()
            assert quantised.generate(IDS[:1], max_new_tokens=4, do_sample=False).shape == (1, 44)
    assert max(errors[:2]) < 0.05 < min(errors[2:])
    assert max(errors[2:]) < 0.6


def test_a_quantised_model_is_not_exported() -> None:
    """Its gates cannot be folded into quantised weights."""
    model = AttractorForCausalLM(AttractorConfig(**SIZES, num_attractor_layers=1)).eval()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    with pytest.raises(ConfigError, match="export before quantization"):
        to_stock(model, 1)
