"""Which optimiser trains which parameter, at which rate."""

import pytest
import torch
from torch import nn

from attractor.config import override
from attractor.errors import ConfigError
from attractor.models.language import AttractorConfig, AttractorForCausalLM
from attractor.optim import OptimizerConfig, trapezoid
from attractor.recipes import language


def test_groups_follow_the_named_rules() -> None:
    """Muon trains the matrices inside layers, the attractor has half the rate, and each parameter has one group."""
    recipe = override(language("tiny"), ["model.num_hidden_layers=5", "model.num_attractor_layers=2"])
    config = recipe.optimizer
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    model = AttractorForCausalLM(AttractorConfig(**sizes, num_hidden_layers=5, num_attractor_layers=2))
    names = {id(p): name for name, p in model.named_parameters()}
    seen: list[str] = []
    for optimizer in config.build(model):
        for group in optimizer.param_groups:
            for p in group["params"]:
                name = names[id(p)]
                seen.append(name)
                is_muon = isinstance(optimizer, torch.optim.Muon)
                assert is_muon == ("_proj.weight" in name), name
                full = config.muon_lr if is_muon else config.lr
                assert group["lr"] == full * (0.5 if ".layers.3." in name or ".layers.4." in name else 1), name
    assert sorted(seen) == sorted(names.values())


def test_norms_and_biases_have_no_weight_decay() -> None:
    """Only matrices have weight decay."""
    (optimizer,) = OptimizerConfig(weight_decay=0.1).build(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)))
    decays = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {1: 0.0, 2: 0.1}


def test_the_trapezoid_rises_stays_and_falls() -> None:
    """Without warm-up it starts at 1."""
    factors = [trapezoid(p, warmup_fraction=0.5, cooldown_fraction=0.25) for p in (0, 0.25, 0.5, 0.75, 1)]
    assert factors == [0, 0.5, 1, 1, 0]
    assert trapezoid(0, warmup_fraction=0, cooldown_fraction=0.5) == 1


@pytest.mark.parametrize(
    "changes",
    [{"muon_pattern": "["}, {"muon_momentum": 1.0}, {"beta2": 1.0}, {"lr": 0.0}, {"final_weight_decay": -1.0}],
)
def test_invalid_settings_are_refused(changes: dict) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigError, match=next(iter(changes))):
        OptimizerConfig(**changes)
