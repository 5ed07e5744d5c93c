"""torch.compile and torch.func around a solve: right values, or one sentence that says what to do."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from attractor import (
    Anderson,
    Broyden,
    ConfigError,
    FixedPoint,
    Implicit,
    Neumann,
    OneStep,
    Phantom,
    Picard,
    Steps,
    Tolerance,
    Unrolled,
    fixed_point,
)
from attractor.models.language import AttractorConfig, AttractorForCausalLM
from attractor.models.reasoning import AttractorReasonerConfig

LINEAR = nn.Linear(8, 8)
nn.init.orthogonal_(LINEAR.weight, 0.3)
X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
GRADIENTS = [OneStep(), Neumann(2), Phantom(steps=3), Implicit(), Unrolled()]


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = LINEAR

    def forward(self, y, x):
        return torch.tanh(self.linear(y) + x)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("causal", [False, True])
def test_compiling_around_a_layer_changes_nothing(causal: bool, backend: str) -> None:
    """Values and gradients, with and without autograd."""
    layer = FixedPoint(Cell(), causal=causal)

    def run(f):
        with torch.no_grad():
            value = f(torch.zeros_like(X), X).value
        LINEAR.zero_grad()
        f(torch.zeros_like(X), X).value.square().sum().backward()
        return value, LINEAR.weight.grad.clone()

    for a, b in zip(run(layer), run(torch.compile(layer, backend=backend)), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("train", [False, True])
def test_compiling_a_model_changes_nothing(train: bool) -> None:
    """A language model and a reasoner."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    language = AttractorForCausalLM(AttractorConfig(**sizes, num_attention_heads=2))
    reasoner = AttractorReasonerConfig(random_init=False, noise=0.0).build()
    for model, data in ((language, torch.randint(31, (2, 12))), (reasoner, torch.randint(4, (2, 5, 5)))):
        model.train(train)
        with torch.set_grad_enabled(train):
            plain, compiled = model(data).logits, torch.compile(model, backend="eager")(data).logits
        assert torch.allclose(plain, compiled, atol=1e-6)


def loss(weights, x, gradient, **options):
    update = lambda y: torch.tanh(functional_call(LINEAR, weights, (y,)) + x)  # noqa: E731
    return fixed_point(update, torch.zeros_like(x), gradient=gradient, **options).value.square().sum()


WEIGHTS = {name: p.detach() for name, p in LINEAR.named_parameters()}


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()], ids=repr)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
def test_functional_gradients_equal_those_of_autograd(gradient, causal: bool, solver) -> None:
    """grad and vjp, with respect to weights and inputs."""
    options = {"causal": causal, "solver": solver, "stop": Tolerance(rtol=1e-5)}
    weights = {name: p.clone().requires_grad_() for name, p in WEIGHTS.items()}
    x = X.clone().requires_grad_()
    loss(weights, x, gradient, **options).backward()
    found, found_x = grad(loss, argnums=(0, 1))(WEIGHTS, X, gradient, **options)
    assert torch.allclose(found["weight"], weights["weight"].grad, atol=1e-5)
    assert torch.allclose(found_x, x.grad, atol=1e-5)
    _, pullback = vjp(lambda x: loss(WEIGHTS, x, gradient, **options), X)
    assert torch.allclose(pullback(torch.ones(()))[0], x.grad, atol=1e-5)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
def test_jacobians_are_right_or_refused(gradient) -> None:
    """jacrev maps the backward pass over a batch."""

    def solution(x):
        return fixed_point(lambda y: torch.tanh(LINEAR(y) + x), torch.zeros_like(x), gradient=gradient).value

    x = X[0, :2]
    expected = torch.autograd.functional.jacobian(solution, x)
    try:
        found = jacrev(solution)(x)
    except ConfigError as error:
        assert "torch.func" in str(error)  # noqa: PT017
    else:
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("stop", [Steps(3), Tolerance()], ids=repr)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
def test_other_transforms_are_refused_in_one_sentence(gradient, stop) -> None:
    """vmap and forward mode cannot be right, second derivatives only with a differentiable solve."""

    def solution(x):
        update = lambda y: torch.tanh(LINEAR(y) + x)  # noqa: E731
        return fixed_point(update, torch.zeros_like(x), gradient=gradient, stop=stop).value

    calls = [
        lambda: vmap(solution)(X),
        lambda: jvp(solution, (X,), (X,)),
        lambda: jacfwd(solution)(X[0, :1]),
        lambda: hessian(lambda x: solution(x).sum())(X[0, :1]),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=r"torch\.func"):
            call()


@pytest.mark.parametrize("gradient", [OneStep(), Neumann(2), Implicit()], ids=repr)
def test_second_derivatives_through_transforms_are_refused(gradient) -> None:
    """Nested grad, and autograd of a functional gradient."""
    inner = lambda x: grad(lambda x: loss(WEIGHTS, x, gradient))(x).square().sum()  # noqa: E731
    with pytest.raises(ConfigError, match="second derivatives"):
        grad(inner)(X)
    x = X.clone().requires_grad_()
    with pytest.raises(ConfigError, match="second derivatives"):
        inner(x).backward()
