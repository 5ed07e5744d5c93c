"""Training with frozen parameters: they stay, and cost neither gradients, optimiser state nor activations."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.objectives.test_next_token import Drawn
from torch import Tensor

from attractor import recipes
from attractor.errors import CheckpointError, ConfigError
from attractor.models.language import AttractorConfig, AttractorForCausalLM
from attractor.objectives import NextToken, NextTokenConfig
from attractor.optim import OptimizerConfig, freeze
from attractor.training import TrainConfig, find_checkpoint, train

SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
BACKBONE = recipes.override(
    recipes.retrofit(), {f"model.{name}": n for name, n in SIZES.items()} | {"train.freeze": "backbone"}
).freeze


def build(**settings) -> AttractorForCausalLM:
    torch.manual_seed(0)
    model = AttractorForCausalLM(AttractorConfig(**{**SIZES, "max_evaluations": 6, **settings})).train()
    for p in model.parameters():  # at initialisation the residual branches are zero
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.2)
    return model


def run(out, pattern: str = BACKBONE, *, resume: bool = False, num_steps: int = 6, **settings):
    config = TrainConfig(
        num_steps=num_steps,
        freeze=pattern,
        optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.1, muon_pattern="down_proj"),
        cooldown_fraction=0,
        ema_decay=0.9,
        log_every=1,
        checkpoint_every=3,
    )
    objective = NextToken(Drawn(), NextTokenConfig(batch_size=2, length=16, contraction_penalty=0.1))
    metadata = {"train": {"freeze": pattern}}
    return train(build(**settings), objective, config, out=out, metadata=metadata, resume=resume)


def saved_bytes(model, ids: Tensor) -> int:
    """Return the bytes that autograd keeps for the backward pass, without the parameters."""
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids, labels=ids, tolerance=1e-9, max_evaluations=4)
    return sum(size for size, _ in kept.values())


def test_frozen_weights_stay_and_the_others_train(tmp_path) -> None:
    """Bitwise, in the weights and their average. The checkpoint holds all of them, and no optimiser state for frozen ones."""
    start, trained = build().state_dict(), run(tmp_path).state_dict()
    for name, weight in start.items():
        assert torch.equal(weight, trained[name]) == (".layers.2." not in name), name
    checkpoint = find_checkpoint(tmp_path)
    assert load_file(checkpoint / "model.safetensors").keys() == start.keys()
    index = (checkpoint / "training" / ".metadata").read_bytes().decode(errors="ignore")
    states = set(re.findall(r"optimizers\.([\w.]+?)\.(?:exp_avg|momentum_buffer)", index))
    assert states
    assert all(".layers.2." in name for name in states)


def test_a_resumed_run_with_frozen_weights_is_bitwise_the_uninterrupted_one(tmp_path) -> None:
    """It must freeze the same parameters."""
    whole, parts = run(tmp_path / "whole"), tmp_path / "parts"
    run(parts, num_steps=3)
    with pytest.raises(CheckpointError, match=r"freeze is .* there and  here"):
        run(parts, "", resume=True)
    again = run(parts, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    losses = [
        [json.loads(line)["loss"] for line in (out / "metrics.jsonl").open()] for out in (tmp_path / "whole", parts)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("gradient", ["one-step", "neumann", "phantom", "implicit", "unrolled"])
def test_a_frozen_backbone_leaves_the_gradients_of_the_attractor(gradient: str) -> None:
    """They are bitwise those of full training."""
    ids, found = Drawn().batch(0, 2)[0], []
    for pattern in ("", BACKBONE):
        model = build(gradient=gradient)
        freeze(model, pattern)
        model(ids, labels=ids).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(found[1]) == 13 < len(found[0])
    assert all(torch.equal(gradient, found[0][name]) for name, gradient in found[1].items())


def test_a_frozen_backbone_keeps_no_activations() -> None:
    """What is kept for the backward pass does not grow with the number of its layers; without freezing it does."""
    ids, kept = Drawn().batch(0, 2)[0], {}
    for num in (3, 6):
        for is_frozen in (False, True):
            model = build(num_hidden_layers=num)
            freeze(model, rf"^(?!.*\.layers\.{num - 1}\.)" * is_frozen)
            kept[num, is_frozen] = saved_bytes(model, ids)
    assert kept[3, True] == kept[6, True] < kept[3, False] < kept[6, False]


def test_a_tied_head_is_frozen_with_the_embedding() -> None:
    """Under both of its names. An untied head is not."""
    for tied in (True, False):
        for name in ("embed_tokens", "lm_head"):
            model = build(tie_word_embeddings=tied)
            freeze(model, name)
            frozen = {n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
            both = {"model.embed_tokens.weight", "lm_head.weight"}
            assert frozen == (both if tied else {n for n in both if name in n})


def test_patterns_that_freeze_nothing_or_everything_are_refused() -> None:
    """In one sentence; also a pattern that is no regular expression, and a backbone without attractor layers."""
    for pattern, says in (("q_prok", "matches no parameter; their names are such as"), (".", "nothing is trained")):
        with pytest.raises(ConfigError, match=says):
            freeze(build(), pattern)
    with pytest.raises(ConfigError, match=r"freeze='\('.*not a valid regular expression"):
        TrainConfig(num_steps=1, freeze="(")
    plain = recipes.override(recipes.get("language/tiny-transformer"), {"train.freeze": "backbone"})
    with pytest.raises(ConfigError, match="no attractor layers"):
        _ = plain.freeze
    assert replace(plain, train=replace(plain.train, freeze="norm")).freeze == "norm"


def test_the_matrix_of_the_injection_belongs_to_the_attractor() -> None:
    """A frozen backbone leaves it to be trained."""
    settings = {f"model.{name}": n for name, n in SIZES.items()}
    recipe = recipes.override(recipes.retrofit(), settings | {"model.injection": "concat", "train.freeze": "backbone"})
    model = AttractorForCausalLM(recipe.model)
    freeze(model, recipe.freeze)
    assert model.model.injection.weight.requires_grad
    assert not model.model.layers[0].mlp.down_proj.weight.requires_grad
