"""Every model's own count of operations equals the count of PyTorch."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attractor import Steps
from attractor.models.language import (
    AttractorConfig,
    AttractorForCausalLM,
    LanguageModel,
    LoopedConfig,
    LoopedForCausalLM,
)
from attractor.models.reasoning import AttractorReasonerConfig, HRMConfig, ReasonerConfig, TransformerConfig, TRMConfig
from attractor.nn import (
    GatedConvolutionUpdateConfig,
    GridNetworkConfig,
    SymmetricUpdateConfig,
    TRMUpdateConfig,
)
from attractor.optim import freeze

LENGTH = 24
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
}
LANGUAGE = {
    "plain": {"num_attractor_layers": 0},
    "deq": {"num_attractor_layers": 4, "start": "zero"},
    "concat": {"num_attractor_layers": 2, "injection": "concat"},
    "relu2": {"num_attractor_layers": 2, "hidden_act": "relu2", "qk_norm": False},
    **{name: {"num_attractor_layers": 2, "gradient": name} for name in ("one-step", "neumann", "phantom", "unrolled")},
}


def counted(run) -> float:
    """Operations of ``run``. The counter knows only the attention that also computes the masked half."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def expected(model: LanguageModel, evaluations: int, training: bool) -> float:
    """The model's own count, and the operations that it does not count."""
    config, passes = model.config, sum(n * uses for n, uses in model.layer_uses(evaluations, training=training))
    per_pair = 4.0 * config.num_attention_heads * config.head_width  # of one token attending to one other
    not_counted = per_pair * passes * (LENGTH - 1) / 2  # the masked half
    if (
        training and getattr(config, "gradient", "") == "neumann"
    ):  # a vector-Jacobian product of attention costs two passes
        not_counted += per_pair * config.num_attractor_layers * LENGTH
    return LENGTH * (model.flops_per_token(LENGTH, evaluations, training=training) + not_counted)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("evaluations", [3, 6])
@pytest.mark.parametrize("name", LANGUAGE)
def test_language_models(name: str, evaluations: int, training: bool) -> None:
    """Forward, and training with every gradient except ``implicit``; apart from the masked half of attention."""
    torch.manual_seed(0)
    model = AttractorForCausalLM(AttractorConfig(**SIZES, **LANGUAGE[name])).train(training)
    budget = {} if name == "plain" else {"tolerance": 1e-12, "max_evaluations": evaluations}
    for p in model.parameters():  # new layers are the identity, and would converge at once
        torch.nn.init.normal_(p, std=0.15)

    def run() -> None:
        with torch.set_grad_enabled(training):
            logits = model(torch.arange(LENGTH)[None], **budget).logits
        if training:
            logits.sum().backward()

    # With "unrolled", Anderson's small linear systems are differentiated too; the model does not count them.
    rounding = 3e-4 if name == "unrolled" else 1e-9
    assert counted(run) == pytest.approx(expected(model, evaluations, training), rel=rounding)


def test_a_frozen_backbone_is_used_forward_only() -> None:
    """In training; the attractor's first matrices need no gradients of their inputs, which is not counted."""
    torch.manual_seed(0)
    model = AttractorForCausalLM(AttractorConfig(**SIZES, num_attractor_layers=1)).train()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15)
    freeze(model, r"^(?!.*\.layers\.3\.)")

    def run() -> None:
        model(torch.arange(LENGTH)[None], tolerance=1e-12, max_evaluations=4).logits.sum().backward()

    assert counted(run) == pytest.approx(expected(model, 4, True), rel=0.02)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("iterations", [2, 6])
def test_the_looped_model(iterations: int, training: bool, monkeypatch) -> None:
    """With fewer and with more iterations than carry gradients; apart from the masked half of attention."""
    monkeypatch.setattr(torch, "poisson", lambda rate: rate)
    model = LoopedForCausalLM(LoopedConfig(**SIZES, mean_recurrence=iterations)).train(training)

    def run() -> None:
        with torch.set_grad_enabled(training):
            logits = model(torch.arange(LENGTH)[None]).logits
        if training:
            logits.sum().backward()

    assert counted(run) == pytest.approx(expected(model, iterations, training), rel=1e-9)


CELLS = GridNetworkConfig(width=16, hidden=32, cell_hidden=24, num_cells=20, num_heads=2)
UPDATES = {
    "gated": GatedConvolutionUpdateConfig(width=8, hidden=12),
    **{
        mixing: TRMUpdateConfig(network=replace(CELLS, mixing=mixing), num_latent=2)
        for mixing in ("mixer", "attention", "convolution")
    },
}
REASONERS: dict[str, ReasonerConfig] = {
    **{name: AttractorReasonerConfig(update=update, halting=True) for name, update in UPDATES.items()},
    "symmetric": AttractorReasonerConfig(
        update=SymmetricUpdateConfig(width=8, hidden=12, box_height=2, box_width=2),
        num_symbols=5,
        num_classes=5,
        halting=True,
    ),
    "no-head": AttractorReasonerConfig(update=UPDATES["mixer"], solver="anderson"),
    "one-step": AttractorReasonerConfig(update=UPDATES["mixer"], gradient="one-step"),
    "trm": TRMConfig(update=UPDATES["attention"]),
    "hrm": HRMConfig(network=replace(CELLS, mixing="attention"), num_latent=3),
    "transformer": TransformerConfig(network=replace(CELLS, mixing="attention")),
    "halting-transformer": TransformerConfig(network=replace(CELLS, mixing="mixer"), halting=True),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("evaluations_per_segment", "backprop_steps"), [(2, 1), (5, 3)])
@pytest.mark.parametrize("name", REASONERS)
def test_reasoners(name: str, evaluations_per_segment: int, backprop_steps: int, training: bool) -> None:
    """Evaluations and decoding, and a training segment with its backward pass; three puzzles cost three times one."""
    if "transformer" in name:
        backprop_steps = 1  # its evaluations ignore the state, so only the last has gradients
    model = (
        replace(REASONERS[name], evaluations_per_segment=evaluations_per_segment, backprop_steps=backprop_steps)
        .build()
        .train(training)
    )
    questions = torch.zeros(3, 4, 4 if name == "symmetric" else 5, dtype=torch.long)

    def run() -> None:
        with torch.set_grad_enabled(training):
            output = model(questions, stop=None if training else Steps(evaluations_per_segment))
            loss = output.logits.sum() + (0 if output.halt is None else output.halt.sum())
        if training:
            loss.backward()

    assert counted(run) == pytest.approx(
        3 * model.flops_per_puzzle(questions[0].numel(), evaluations_per_segment, training=training), rel=1e-9
    )


def test_counting_draws_no_random_numbers() -> None:
    """A training run that reports FLOPs is the same as one that does not."""
    model = replace(REASONERS["mixer"], num_classes=7).build()
    before = torch.get_rng_state()
    model.flops_per_puzzle(20, training=True)
    assert torch.equal(before, torch.get_rng_state())
