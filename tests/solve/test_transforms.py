"""torch.compile and torch.func around a solve: right values, or one sentence that says what to do."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from attractor import (
    Anderson,
    BestSoFar,
    Broyden,
    ConfigError,
    FixedPoint,
    Implicit,
    Neumann,
    Newton,
    NewtonKrylov,
    OneStep,
    Phantom,
    Picard,
    Solver,
    Tolerance,
    Unrolled,
    fixed_point,
    root,
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


W = 0.2 * torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
EXACT = [Implicit(stop=Tolerance(rtol=1e-10)), Unrolled()]


def solution(x, gradient, solver=None, rtol=1e-10):
    """Return the fixed point of y ↦ tanh(y W) + x."""
    stop = Tolerance(rtol=rtol, patience=None)
    update = lambda y: torch.tanh(y @ W) + x  # noqa: E731
    return fixed_point(update, torch.zeros_like(x), solver=solver or Anderson(), gradient=gradient, stop=stop).value


@pytest.mark.parametrize(
    "solver", [Picard(), Anderson(), Broyden(), BestSoFar(Anderson())], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
def test_vmap_and_its_derivatives_equal_a_loop(gradient, solver) -> None:
    """vmap of a solve, of its gradient, and the gradient of a mapped solve."""
    x = X.double()
    with torch.no_grad():
        assert torch.allclose(
            vmap(lambda x: solution(x, gradient, solver))(x), solution(x, gradient, solver), atol=1e-8
        )
    one = lambda x: solution(x, gradient, solver).square().sum()  # noqa: E731
    expected = torch.stack([torch.func.grad(one)(row) for row in x])
    assert torch.allclose(vmap(grad(one))(x), expected, atol=1e-7)
    assert torch.allclose(grad(lambda x: vmap(one)(x).sum())(x), expected, atol=1e-7)


def test_mapped_rows_do_not_influence_each_other() -> None:
    """The hardest of the mapped solves decides when the loop ends, and no other value depends on it."""
    x = X.double()
    hard = torch.stack([x[0], 1e6 * x[1]])
    found = vmap(lambda x: solution(x, Implicit(), rtol=1e-6))
    assert torch.equal(found(torch.stack([x[0], x[0]]))[0], found(hard)[0])


@pytest.mark.parametrize("gradient", EXACT, ids=lambda g: type(g).__name__)
def test_forward_mode_is_exact(gradient) -> None:
    """jvp against finite differences, and as a plain dual tensor; jacfwd against jacrev."""
    x, t = X.double(), X.double().flip(1)
    value, tangent = jvp(lambda x: solution(x, gradient), (x,), (t,))
    step = 1e-5 * t
    difference = (solution(x + step, gradient) - solution(x - step, gradient)) / 2e-5
    assert torch.allclose(tangent, difference.detach(), atol=1e-8)
    assert torch.allclose(value, solution(x, gradient).detach(), atol=1e-9)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, t)
        again = torch.autograd.forward_ad.unpack_dual(solution(dual, gradient))
        assert torch.allclose(again.tangent, tangent)
    one = lambda x: solution(x, gradient)  # noqa: E731
    assert torch.allclose(jacfwd(one)(x[0, :2]), jacrev(one)(x[0, :2]), atol=1e-7)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
def test_forward_and_reverse_mode_have_the_same_jacobian(gradient) -> None:
    """Also where the gradient is an approximation."""
    x = X.double()[0, :2]
    expected = torch.autograd.functional.jacobian(lambda x: solution(x, gradient), x)
    assert torch.allclose(jacrev(lambda x: solution(x, gradient))(x), expected, atol=1e-7)
    assert torch.allclose(jacfwd(lambda x: solution(x, gradient))(x), expected, atol=1e-4)


def test_nested_states_and_roots_are_transformed_too() -> None:
    x = X.double()[0]

    def nested(x):
        update = lambda s: {"a": torch.tanh(s["b"] @ W) + x, "b": 0.5 * s["a"]}  # noqa: E731
        start = {"a": torch.zeros_like(x), "b": torch.zeros_like(x)}
        return fixed_point(update, start, stop=Tolerance(rtol=1e-10)).value["a"]

    assert torch.allclose(jacfwd(nested)(x[:2]), jacrev(nested)(x[:2]), atol=1e-4)
    cube = lambda x: root(lambda y: y**3 - x, torch.ones_like(x), stop=Tolerance(rtol=1e-10)).value  # noqa: E731
    target = torch.linspace(1, 8, 5, dtype=torch.float64)[:, None]
    assert torch.allclose(vmap(cube)(target[:, None])[:, 0], target ** (1 / 3))
    for solver in (Newton(), NewtonKrylov(), Broyden()):
        step = lambda x, s=solver: root(lambda y: y**3 / 3 + y - x, x / 2, solver=s, stop=Tolerance(rtol=1e-10)).value  # noqa: E731
        value, tangent = jvp(step, (target,), (torch.ones_like(target),))
        assert torch.allclose(tangent, 1 / (value**2 + 1), atol=1e-5), solver


@pytest.mark.parametrize("gradient", [OneStep(), Neumann(2), Implicit()], ids=repr)
def test_second_derivatives_are_refused_in_one_sentence(gradient) -> None:
    """Only with a differentiable solve they are right."""
    for call in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f))):
        with pytest.raises(ConfigError, match="second derivatives"):
            call(lambda x: solution(x, gradient).sum())(X[0, :1].double())


def test_second_derivatives_of_unrolled_solves_are_right() -> None:
    x = X.double()[0, :1, :3]
    w = W[:3, :3]

    def f(x):
        stop = Tolerance(rtol=1e-12, patience=None)
        update = lambda y: torch.tanh(y @ w) + x  # noqa: E731
        return fixed_point(update, torch.zeros_like(x), gradient=Unrolled(), stop=stop, solver=Picard()).value.sum()

    assert torch.allclose(hessian(f)(x), torch.autograd.functional.hessian(f, x), atol=1e-7)


@pytest.mark.parametrize("gradient", [OneStep(), Neumann(2), Implicit()], ids=repr)
def test_second_derivatives_through_transforms_are_refused(gradient) -> None:
    """Nested grad, and autograd of a functional gradient."""
    inner = lambda x: grad(lambda x: loss(WEIGHTS, x, gradient))(x).square().sum()  # noqa: E731
    with pytest.raises(ConfigError, match="second derivatives"):
        grad(inner)(X)
    x = X.clone().requires_grad_()
    with pytest.raises(ConfigError, match="second derivatives"):
        inner(x).backward()


@dataclass(frozen=True, kw_only=True)
class InPlace(Solver):
    """A solver that writes into its state, which ``vmap`` cannot map."""

    max_growth: float = 4.0

    def init(self, y):
        return torch.zeros_like(y)

    def step(self, state, y, f, g, residual, fresh):
        return torch.add(y, g, out=state), state


def test_vmap_over_a_solver_that_cannot_be_mapped_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="InPlace or update has an operation that cannot be mapped"):
        vmap(lambda x: fixed_point(lambda y: 0.5 * y + x, torch.zeros_like(x), solver=InPlace()).value)(X)
