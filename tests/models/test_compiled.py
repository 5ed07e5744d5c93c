"""Compiled blocks: the same losses and gradients, few graphs, no recompilation, and uncompiled evaluation."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from attractor.gradient import jacobian_penalty
from attractor.models.language import (
    AttractorConfig,
    AttractorForCausalLM,
    LanguageModel,
    LoopedConfig,
    LoopedForCausalLM,
)
from attractor.nn import CompiledBlock, compile_blocks
from attractor.objectives import NextToken, NextTokenConfig
from attractor.solve import Status
from attractor.training import TrainConfig, train

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# Layers of a kind need one graph for each gradient mode: an attractor solves without gradients and attaches them
# afterwards.
FAMILIES = {
    "attractor": (lambda **s: build(num_attractor_layers=2, **s), 3),
    "plain": (lambda **s: build(num_attractor_layers=0, **s), 1),
    "deq": (lambda **s: build(num_attractor_layers=4, start="zero", gate_start=0.3, gate_limit=0.4, **s), 2),
    "looped": (lambda **s: build(LoopedForCausalLM, LoopedConfig, num_core_layers=2, mean_recurrence=6, **s), 2),
}


def build(model_class: type = AttractorForCausalLM, config_class: type = AttractorConfig, **changes) -> LanguageModel:
    """A small model in training mode; every weight changes the output."""
    torch.manual_seed(0)
    model = model_class(config_class(**{**SIZES, **changes}))
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.1)
    return model.train()


def compiled(model: torch.nn.Module, backend: str = "aot_eager") -> torch.nn.Module:
    """A compiled copy, without graphs of earlier compilations."""
    torch._dynamo.reset()
    counters.clear()
    model = copy.deepcopy(model)
    compile_blocks(model, backend=backend)
    return model


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def tokens(batch: int = 2, length: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(2, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


def packed(first: int, length: int = 16) -> Tensor:
    """Positions (2, T) of two documents a row."""
    return torch.cat([torch.arange(first), torch.arange(length - first)]).expand(2, -1)


def loss_and_gradients(model: LanguageModel, seed: int = 0, **settings) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(seed)  # a looped model samples its number of iterations
    loss = model(tokens(), labels=tokens(), **settings).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model: LanguageModel, fast: LanguageModel, **settings) -> None:
    (a, before), (b, after) = loss_and_gradients(model, **settings), loss_and_gradients(fast, **settings)
    assert abs(a - b) < 1e-5
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        assert torch.allclose(gradient, after[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_equal_and_nothing_is_compiled_again(family: str) -> None:
    """One graph for each kind of layer and gradient mode, as many for packed documents, one for the head."""
    make, num = FAMILIES[family]
    model = make(tolerance=1e-3, max_evaluations=12)
    fast = compiled(model)
    assert fast.state_dict().keys() == model.state_dict().keys()
    assert_same(model, fast)
    assert graphs() == num + 1
    if family != "plain":
        for budget in ({"depth": 3}, {"depth": 5}, *[{"max_evaluations": 7}] * (family != "looped")):
            assert_same(model, fast, **budget)
        assert_same(model, fast, seed=1)
    assert graphs() == num + 1
    assert_same(model, fast, position_ids=packed(8))
    assert_same(model, fast, position_ids=packed(5))
    assert graphs() == 2 * num + 1


def test_the_default_backend_computes_the_same() -> None:
    """Generated CPU code, forward and backward."""
    model = build(num_attractor_layers=0, num_hidden_layers=1)
    fast = compiled(model, "inductor")
    (a, before), (b, after) = loss_and_gradients(model), loss_and_gradients(fast)
    assert abs(a - b) < 1e-4
    assert graphs() == 2
    for name, gradient in before.items():
        assert torch.allclose(gradient, after[name], rtol=1e-2, atol=1e-5), name


def test_evaluation_caches_and_copies_run_uncompiled() -> None:
    """Bitwise equal in any number of shapes, and nothing is compiled for them."""
    model = build()
    fast = compiled(model)
    copied = copy.deepcopy(fast)
    with torch.no_grad():  # training supports a cache at a fixed depth
        assert torch.equal(
            model(tokens(), depth=2, use_cache=True).logits, fast(tokens(), depth=2, use_cache=True).logits
        )
    model.eval(), fast.eval()
    for length in range(8, 12):
        with torch.no_grad():
            assert torch.equal(model(tokens(length=length)).logits, fast(tokens(length=length)).logits)
    for budget in ({}, {"depth": 2}):
        a, b = (m.generate(tokens(length=6), max_new_tokens=4, do_sample=False, **budget) for m in (model, fast))
        assert torch.equal(a, b)
    assert copied.state_dict().keys() == model.state_dict().keys()
    assert_same(model.train(), copied)
    assert graphs() == 0


def test_a_backward_graph_can_be_used_repeatedly() -> None:
    """Neumann gradients use it once per term, also after a plain backward pass of the same compiled graph."""
    model = build(gradient="neumann", tolerance=1e-3)
    fast = compiled(model)
    assert_same(model, fast, depth=2)
    assert_same(model, fast)


def test_compiling_leaves_the_settings_of_the_process_unchanged() -> None:
    """Compiling, running forward and backward, and a gradient that uses a backward graph repeatedly."""
    dynamo, functorch = torch._dynamo.config, torch._functorch.config
    before = dynamo.recompile_limit, functorch.donated_buffer
    assert before == (8, True), "the defaults, or nothing is tested"
    model = compiled(build(gradient="neumann", tolerance=1e-3))
    assert (dynamo.recompile_limit, functorch.donated_buffer) == before
    loss_and_gradients(model)
    assert graphs() > 0
    assert (dynamo.recompile_limit, functorch.donated_buffer) == before


def test_more_kinds_of_blocks_than_the_default_limit_are_compiled() -> None:
    """Every width is another graph of the same class."""

    class Branch(CompiledBlock):
        def __init__(self, hidden: int) -> None:
            super().__init__()
            self.mlp = torch.nn.Sequential(torch.nn.Linear(8, hidden), torch.nn.Linear(hidden, 8))

        def forward(self, y: Tensor) -> Tensor:
            return self.mlp(y)

    fast = compiled(torch.nn.Sequential(*(Branch(hidden) for hidden in range(8, 20))))
    fast(torch.rand(2, 3, 8)).sum().backward()
    assert graphs() == 12


def test_second_derivatives_run_uncompiled() -> None:
    """Compiled code has none."""

    class Square(CompiledBlock):
        def forward(self, y: Tensor) -> Tensor:
            return y.square()

    fast = compiled(torch.nn.Sequential(Square()))
    y = torch.rand(2, 3, requires_grad=True)
    jacobian_penalty(fast, y).backward()
    assert graphs() == 0
    fast(y).sum().backward()
    assert graphs() == 1


class _Rows:
    def batch(self, first: int, num: int) -> tuple[Tensor, Tensor]:
        return tokens(num, seed=first), torch.arange(16).expand(num, 16)


@pytest.mark.parametrize(("setting", "num"), [(True, 4), (False, 0), (None, 0)])
def test_the_setting_decides_and_the_log_compiles_nothing(setting, num: int, tmp_path, monkeypatch) -> None:
    """Without the setting, blocks are compiled on a GPU only. Diagnostics and the returned model run uncompiled."""
    monkeypatch.setattr("attractor.training.loop.compile_blocks", partial(compile_blocks, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    objective = NextToken(_Rows(), NextTokenConfig(batch_size=2, length=16, contraction_penalty=0.1), peak_flops=1e9)
    config = TrainConfig(num_steps=3, log_every=1, ema_decay=0.5, compile=setting)
    trained = train(build(), objective, config, out=tmp_path, metadata={})
    trained(tokens(3))
    assert graphs() == num


def test_rare_convergence_checks_change_no_converged_token() -> None:
    """If a solve waits for all tokens, losses and solutions are bitwise those of frequent checks; otherwise those of
    tokens that had converged."""
    for share in (1.0, 0.6):
        frequent, rare = (
            build(tolerance=1e-4, training_min_converged_fraction=share, check_every=every)(tokens(), labels=tokens())
            for every in (1, 64)
        )
        a, b = frequent.solution, rare.solution
        assert a.outcome.calls < b.outcome.calls == 64
        converged = a.outcome.status == Status.CONVERGED
        assert converged.any()
        assert torch.equal(a.value[converged], b.value[converged])
        if share == 1:
            assert converged.all()
            assert torch.equal(frequent.loss, rare.loss)
            assert torch.equal(a.evaluations, b.evaluations)
        else:
            assert not converged.all()
    model = build(check_every=64).eval()
    with torch.no_grad():
        assert model(tokens(), tolerance=None).solution.outcome.calls < 64
