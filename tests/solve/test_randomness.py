"""Random numbers inside an update: equal within a solve, new for the next solve, without disturbing the global stream."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attractor import FixedPoint, Neumann, Phantom, Picard, Steps, Tolerance, Unrolled, fixed_point
from attractor.errors import ConfigError
from attractor.models.language import AttractorConfig, AttractorForCausalLM, LoopedConfig, LoopedForCausalLM
from attractor.models.reasoning import AttractorReasonerConfig
from attractor.nn import CompiledBlock, compile_blocks
from attractor.solve.randomness import checkpoint_contexts

X = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
ATTENTION = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
LSTM = nn.LSTM(8, 8, num_layers=2, dropout=0.3, batch_first=True)


def fused(y: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None], dropout_p=0.3)[:, 0]


DRAWS = {
    "dropout": lambda y: F.dropout(y, 0.3),
    "dropout1d": lambda y: F.dropout1d(y, 0.3),
    "alpha_dropout": lambda y: F.alpha_dropout(y, 0.3, training=True),
    "feature_alpha_dropout": lambda y: F.feature_alpha_dropout(y, 0.3, training=True),
    "native_dropout": lambda y: torch.native_dropout(y, 0.3, True)[0],
    "bernoulli": lambda y: y * torch.bernoulli(torch.full_like(y, 0.7)),
    "bernoulli_": lambda y: y * torch.empty_like(y).bernoulli_(0.7),
    "rand": lambda y: y * torch.rand(y.shape),
    "randn": lambda y: y + 0.1 * torch.randn(y.shape),
    "rand_like": lambda y: y * torch.rand_like(y),
    "randn_like": lambda y: y + 0.1 * torch.randn_like(y),
    "randint": lambda y: y * torch.randint(0, 2, y.shape),
    "randint_like": lambda y: y * torch.randint_like(y, 2),
    "randperm": lambda y: y * torch.randperm(8) / 8,
    "normal": lambda y: y + torch.normal(0.0, torch.full_like(y, 0.1)),
    "uniform_": lambda y: y * torch.empty_like(y).uniform_(),
    "multinomial": lambda y: y * torch.multinomial(torch.ones(8), 8) / 8,
    "rrelu": lambda y: F.rrelu(y, training=True),
    "gumbel_softmax": lambda y: F.gumbel_softmax(y),
    "attention": fused,
    "MultiheadAttention": lambda y: ATTENTION(y, y, y)[0],
    "LSTM": lambda y: LSTM(y)[0],
}


def damped(draw, seen=None):
    def update(y: Tensor) -> Tensor:
        if seen is not None:  # what the draws are at a fixed point of reference
            seen.append(draw(X).detach())
        return 0.3 * torch.tanh(draw(y)) + X

    return update


@pytest.mark.parametrize("name", DRAWS)
def test_every_kind_of_random_number_repeats_within_a_solve(name: str) -> None:
    """All calls, also those of the gradient, see the draws of the first; the next solve sees others."""
    torch.manual_seed(0)
    solves = []
    for _ in range(2):
        seen: list[Tensor] = []
        solution = fixed_point(damped(DRAWS[name], seen), X.clone().requires_grad_(), gradient=Phantom(steps=2))
        assert solution.outcome.converged
        assert len(seen) > 3
        assert all(torch.allclose(seen[0], other, atol=1e-6) for other in seen)
        solves.append(seen[0])
    assert not torch.equal(*solves)


@pytest.mark.parametrize("name", DRAWS)
def test_the_global_stream_advances_as_one_call_would(name: str) -> None:
    """After a solve, the generator is where one call of the update leaves it."""
    torch.manual_seed(0)
    damped(DRAWS[name])(X)
    expected = torch.get_rng_state()
    torch.manual_seed(0)
    fixed_point(damped(DRAWS[name]), X)
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_solve_inside_a_solve_repeats_too() -> None:
    """The inner solve is one call of the outer update; all its calls share their masks."""
    inner_seen: list[Tensor] = []
    inner = damped(DRAWS["dropout"], inner_seen)
    outer = fixed_point(lambda y: 0.3 * fixed_point(lambda z: inner(z) + 0.1 * y, y).value, X)
    assert outer.outcome.converged
    assert all(torch.equal(inner_seen[0], other) for other in inner_seen)


@pytest.mark.parametrize("name", ["dropout", "LSTM", "MultiheadAttention", "rand_like"])
def test_solves_in_inference_mode_repeat_too(name: str) -> None:
    """Monte-Carlo dropout in evaluation."""
    with torch.inference_mode():
        assert fixed_point(damped(DRAWS[name]), X.clone()).outcome.converged


def test_a_generator_of_the_update_is_left_alone_and_the_solve_warns() -> None:
    """Its numbers differ from call to call; where that prevents convergence, a warning names the cause."""
    generator = torch.Generator().manual_seed(0)
    update = damped(lambda y: y + 0.1 * torch.randn(y.shape, generator=generator))
    with pytest.warns(RuntimeWarning, match="different values at the same point"):
        assert not fixed_point(update, X).outcome.converged


def test_updates_without_random_numbers_do_not_warn(recwarn) -> None:
    """Stagnation at the precision of the update has another cause."""
    update = lambda y: (0.3 * torch.tanh(y.bfloat16()) + X.bfloat16()).float()  # noqa: E731
    fixed_point(update, X, stop=Tolerance(rtol=1e-9))
    fixed_point(lambda y: -y + X, X, solver=Picard())
    assert not recwarn.list


def test_another_thread_never_sees_its_numbers_again() -> None:
    """The global generator is not set back."""
    layer = FixedPoint(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Tanh()), stop=Tolerance(max_evaluations=8))
    seen, stop = [], threading.Event()

    def draw() -> None:
        while not stop.is_set() and len(seen) < 20_000:
            seen.append(torch.randint(2**62, ()).item())

    thread = threading.Thread(target=draw)
    thread.start()
    for _ in range(20):
        layer(X)
    stop.set()
    thread.join()
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("gradient", [Neumann(2), Phantom(steps=2), Unrolled()], ids=lambda g: type(g).__name__)
def test_recomputed_layers_have_the_gradients_of_stored_ones(gradient) -> None:
    """Activation checkpointing draws the same masks again in the backward pass."""

    def run(recompute: bool) -> Tensor:
        torch.manual_seed(0)
        weight = torch.eye(8).mul(0.3).requires_grad_()
        layer = lambda y: F.dropout(torch.tanh(F.dropout(y, 0.2) @ weight), 0.3) + X  # noqa: E731

        def update(y: Tensor) -> Tensor:
            return checkpoint(layer, y, use_reentrant=False, context_fn=checkpoint_contexts) if recompute else layer(y)

        fixed_point(update, X, gradient=gradient).value.square().sum().backward()
        return weight.grad

    assert torch.equal(run(True), run(False))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_that_would_draw_other_numbers_is_refused(reentrant: bool) -> None:
    """It restores generators that a solve does not use. Around the complete solve it is right."""
    y0 = X.clone().requires_grad_()

    def layer(y: Tensor) -> Tensor:
        return 0.3 * F.dropout(y, 0.2) + 1

    with pytest.raises(ConfigError, match="checkpoint_contexts"):
        fixed_point(lambda y: checkpoint(layer, y, use_reentrant=reentrant), y0, gradient=Phantom())
    torch.manual_seed(0)
    checkpoint(lambda x: fixed_point(layer, x).value, y0, use_reentrant=reentrant).sum().backward()


SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


def with_dropout(model: nn.Module) -> nn.Module:
    """Add dropout as LoRA does: inside the projections, also where the model is in evaluation mode."""
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda module, args: (F.dropout(args[0], 0.2),))
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    return model


@pytest.mark.parametrize("mode", ["train", "train, recomputed", "eval"])
def test_language_models_converge_with_dropout(mode: str) -> None:
    """In training, with recomputation, and with Monte-Carlo dropout and cached keys and values in evaluation."""
    torch.manual_seed(0)
    model = with_dropout(AttractorForCausalLM(AttractorConfig(**SIZES, num_attractor_layers=2))).train(mode != "eval")
    if "recomputed" in mode:
        model.gradient_checkpointing_enable()
    ids = torch.randint(31, (2, 12))
    with torch.set_grad_enabled(mode != "eval"):
        output = model(ids, tolerance=1e-3, max_evaluations=64, labels=ids)
    assert output.solution.outcome.calls < 40
    assert output.solution.outcome.converged
    if mode != "eval":
        output.loss.backward()


def test_recomputation_does_not_change_a_language_models_gradient() -> None:
    """With dropout inside the solve."""

    def run(recompute: bool) -> Tensor:
        torch.manual_seed(0)
        model = with_dropout(AttractorForCausalLM(AttractorConfig(**SIZES, num_attractor_layers=2))).train()
        if recompute:
            model.gradient_checkpointing_enable()
        ids = torch.randint(31, (2, 12))
        model(ids, labels=ids).loss.backward()
        return model.model.layers[1].mlp.up_proj.weight.grad

    assert torch.allclose(run(True), run(False), atol=1e-7)


def test_iterations_of_the_looped_model_share_their_masks() -> None:
    """Every kind of language model uses the same mechanism."""
    torch.manual_seed(0)
    model = with_dropout(LoopedForCausalLM(LoopedConfig(**SIZES, mean_recurrence=40))).eval()
    before = torch.get_rng_state()
    with torch.no_grad():
        model(torch.randint(31, (2, 12)))
    assert not torch.equal(before, torch.get_rng_state())


def test_noise_of_a_reasoner_differs_between_evaluations() -> None:
    """It belongs to the training method, and comes from a generator of the model."""
    torch.manual_seed(0)
    model = AttractorReasonerConfig(noise=0.1, random_init=False).build().train()
    q = torch.randint(0, 4, (2, 3, 3))
    update, state = model.make_update(q), model.init_state(q)
    seen = []
    fixed_point(lambda y: seen.append(update(state)) or seen[-1], state, stop=Steps(3), equation_dims=3)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


class Block(CompiledBlock):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, y: Tensor) -> Tensor:
        return 0.3 * torch.tanh(F.dropout(self.linear(y), 0.3, self.training)) + 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_updates_with_dropout_converge(backend: str) -> None:
    """Compiled code cannot repeat its numbers, so it runs uncompiled after the first call of a solve that draws."""
    torch.manual_seed(0)
    block = Block().train()
    compile_blocks(block, backend=backend)
    for _ in range(2):
        solution = fixed_point(block, torch.zeros(4, 8))
        assert solution.outcome.converged
        solution.value.sum().backward()
