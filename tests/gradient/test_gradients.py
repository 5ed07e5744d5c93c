"""Every gradient compared with the exact one, and used with the features of autograd."""

import pytest
import torch
from torch import nn

from attractor import (
    Anderson,
    BestSoFar,
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

TIGHT = Tolerance(rtol=1e-13, max_evaluations=400, patience=None)
EXACT = Implicit(stop=Tolerance(rtol=1e-13, patience=None))
ALL = [OneStep(), Neumann(2), Phantom(steps=3, damping=0.9), EXACT, Unrolled()]


def by_name(value: object) -> str:
    return type(value).__name__


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (5, 5) and inputs (3, 5), both leaves."""
    generator = torch.Generator().manual_seed(0)
    w = 0.25 * torch.randn(5, 5, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    return w.requires_grad_(), x.requires_grad_()


def solved(w, x, gradient, solver=None, stop=TIGHT) -> torch.Tensor:
    solver = solver or Anderson()
    return fixed_point(
        lambda y: torch.tanh(y @ w.T + x), torch.zeros_like(x), solver=solver, stop=stop, gradient=gradient
    ).value


def gradients(w, x, gradient, solver=None) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(solved(w, x, gradient, solver).pow(3).sum(), (w, x))


def jacobian(w, y) -> torch.Tensor:
    """∂update/∂y at y, (3, 5, 5)."""
    return (1 - y**2)[:, :, None] * w


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()], ids=by_name)
def test_implicit_passes_gradcheck(solver) -> None:
    """The implicit gradient is the derivative of the fixed point, with every solver."""
    assert torch.autograd.gradcheck(lambda w, x: solved(w, x, EXACT, solver), problem())


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()], ids=by_name)
def test_unrolled_passes_gradcheck_and_gradgradcheck_before_convergence(solver) -> None:
    """Unrolled differentiates the solver's own steps exactly, twice, converged or not, y0 included."""
    w, x = problem()

    def run(w, x, y0):
        return fixed_point(
            lambda y: torch.tanh(y @ w.T + x), y0, solver=solver, stop=Steps(4), gradient=Unrolled()
        ).value

    y0 = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(run, (w, x, y0))
    assert torch.autograd.gradgradcheck(run, (w, x, y0))


def test_implicit_equals_unrolled_at_convergence() -> None:
    """Both are the exact gradient there."""
    w, x = problem()
    for a, b in zip(gradients(w, x, EXACT), gradients(w, x, Unrolled()), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_neumann_with_a_clip_scales_terms_down_and_no_others() -> None:
    """Each row by itself, whatever its state's shape; then the series is bounded for an update that does not contract."""
    rates = torch.tensor([0.5, 3.0], dtype=torch.float64)
    for shape in ((2,), (2, 1), (2, 3, 2), (2, 0)):
        rate = rates.view(-1, *[1] * (len(shape) - 1)).expand(shape)
        v = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for terms, clipped in ((1, [1.5, 3.0]), (3, [1.875, 15.0])):
            x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
            Neumann(terms, clip=2.0).attach(lambda y, x=x, rate=rate: rate * y + x, torch.zeros_like(x)).backward(v)
            assert torch.allclose(x.grad, v * torch.tensor(clipped, dtype=v.dtype).view(-1, *[1] * (len(shape) - 1)))
    empty = torch.zeros(0, 3, requires_grad=True)
    Neumann(1, clip=0.5).attach(lambda y: y / 2 + empty, torch.zeros(0, 3)).backward(torch.zeros(0, 3))
    assert empty.grad.shape == (0, 3)


@pytest.mark.parametrize("terms", [0, 1, 2, 5])
def test_neumann_is_the_truncated_neumann_series(terms: int) -> None:
    """u = Σ (Jᵀ)ᵏ v up to k = terms; OneStep is terms = 0."""
    w, x = problem()
    y = solved(w, x, OneStep()).detach()
    v = 3 * y**2
    j = jacobian(w.detach(), y)
    u = term = v
    for _ in range(terms):
        term = (j.mT @ term[:, :, None])[:, :, 0]
        u = u + term
    expected = u * (1 - y**2)  # ∂update/∂x is diagonal
    assert torch.allclose(gradients(w, x, Neumann(terms))[1], expected, atol=1e-9)
    if terms == 0:
        assert torch.equal(gradients(w, x, OneStep())[1], gradients(w, x, Neumann(0))[1])


def test_phantom_with_many_steps_is_exact_and_with_one_is_one_step() -> None:
    """More steps approach the exact gradient."""
    w, x = problem()
    for a, b in zip(gradients(w, x, Phantom(steps=200, damping=0.8)), gradients(w, x, EXACT), strict=True):
        assert torch.allclose(a, b, atol=1e-8)
    for a, b in zip(gradients(w, x, Phantom(steps=1)), gradients(w, x, OneStep()), strict=True):
        assert torch.allclose(a, b, atol=1e-8)


@pytest.mark.parametrize("gradient", [OneStep(), Neumann(2), EXACT, Unrolled()], ids=by_name)
def test_attaching_a_gradient_changes_no_value(gradient) -> None:
    """The values with autograd on and off are equal bit for bit."""
    w, x = problem()
    with torch.no_grad():
        plain = solved(w, x, gradient)
    assert torch.equal(solved(w, x, gradient).detach(), plain)


@pytest.mark.parametrize("gradient", [Phantom(steps=3), Unrolled()], ids=by_name)
def test_phantom_and_unrolled_have_second_derivatives(gradient) -> None:
    """create_graph=True works."""
    w, x = problem()
    (first,) = torch.autograd.grad(solved(w, x, gradient, stop=Steps(6)).pow(3).sum(), w, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), w)
    assert second.isfinite().all()
    assert second.abs().sum() > 0


@pytest.mark.parametrize("gradient", [OneStep(), Neumann(2), EXACT], ids=by_name)
def test_other_gradients_refuse_second_derivatives(gradient) -> None:
    """They raise an error instead of returning a wrong number."""
    w, x = problem()
    with pytest.raises(ConfigError, match="Unrolled"):
        torch.autograd.grad(solved(w, x, gradient).pow(3).sum(), w, create_graph=True)


def test_infinite_cotangents_reach_the_parameters() -> None:
    """A loss scaler finds the overflow there."""
    w, x = problem()
    with pytest.warns(RuntimeWarning, match="3 of 3 row"):
        (solved(w, x, EXACT).sum() * torch.inf).backward()
    assert not w.grad.isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_only_rows_with_a_nonfinite_cotangent_are_differentiated_in_one_step(bad: float) -> None:
    """The others keep the exact gradient, and a warning counts the rows."""
    w, x = problem()
    x.requires_grad_()
    v = torch.ones_like(x)
    exact = torch.autograd.grad(solved(w, x, EXACT), x, v)[0]
    v[1] = bad
    with pytest.warns(RuntimeWarning, match="1 of 3 row"):
        found = torch.autograd.grad(solved(w, x, EXACT), x, v)[0]
    assert not found[1].isfinite().any()
    assert torch.allclose(found[[0, 2]], exact[[0, 2]], atol=1e-9)


def test_a_vector_of_scalar_equations_never_couples_its_rows() -> None:
    """y0 of shape (N,) is N equations: neither the solve nor the adjoint of one depends on the others."""
    rate = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)

    def run(rate):
        rate = rate.clone().requires_grad_()
        solution = fixed_point(lambda y: torch.tanh(rate * y + 1), torch.zeros_like(rate), gradient=Implicit())
        solution.value.sum().backward()
        return solution.value.detach(), rate.grad

    together, alone = run(rate), [run(r) for r in rate.split(1)]
    for i, (value, grad) in enumerate(alone):
        assert torch.equal(together[0][i], value[0])
        assert torch.equal(together[1][i], grad[0])


@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_one_system_without_a_batch_has_its_implicit_gradient(shape) -> None:
    """With equation_dims equal to the number of dimensions, the adjoint is one system too."""
    torch.manual_seed(0)
    a = torch.randn(4, 4, dtype=torch.float64)
    a = (0.9 * a / torch.linalg.matrix_norm(a, 2)).requires_grad_()
    b = torch.randn(4, dtype=torch.float64)
    y = fixed_point(
        lambda y: (a @ y.reshape(4) + b).view(shape),
        torch.zeros(shape, dtype=torch.float64),
        equation_dims=len(shape),
        gradient=EXACT,
        stop=TIGHT,
    ).value
    found = torch.autograd.grad(y.square().sum(), a)[0]
    exact = torch.autograd.grad(torch.linalg.solve(torch.eye(4, dtype=torch.float64) - a, b).square().sum(), a)[0]
    assert torch.allclose(found, exact, atol=1e-8)


@pytest.mark.parametrize(
    "make", [lambda: Implicit(solver=Picard), lambda: Implicit(stop=1e-5), lambda: BestSoFar(Picard)]
)
def test_a_class_or_number_in_place_of_a_setting_is_refused(make) -> None:
    """With one sentence that names the argument."""
    with pytest.raises(ConfigError, match=r"got (the class Picard|1e-05); give a"):
        make()


def test_a_scalar_problem_has_its_implicit_gradient() -> None:
    """One unknown, no batch dimension."""
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = fixed_point(
        lambda y: a * y + 1, torch.zeros((), dtype=torch.float64), equation_dims=0, gradient=EXACT, stop=TIGHT
    ).value
    y.backward()
    assert a.grad.item() == pytest.approx(4)


@pytest.mark.parametrize("gradient", ALL, ids=by_name)
def test_gradients_of_several_solves_add_up(gradient) -> None:
    """Two solves share weights; their gradients are summed."""
    w, x = problem()
    one, two = (torch.autograd.grad(solved(w, s * x, gradient).sum(), w)[0] for s in (1, -2))
    both = torch.autograd.grad(solved(w, x, gradient).sum() + solved(w, -2 * x, gradient).sum(), w)[0]
    assert torch.allclose(both, one + two, atol=1e-9)


@pytest.mark.parametrize("gradient", ALL, ids=by_name)
def test_gradients_reach_layers_before_and_after_a_fixed_point(gradient) -> None:
    """And the parameters inside its cell."""
    torch.manual_seed(0)

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)
            nn.init.orthogonal_(self.linear.weight, 0.5)

        def forward(self, y, x):
            return torch.tanh(self.linear(y) + x)

    layer = FixedPoint(Cell(), gradient=gradient).double()
    before, after = nn.Linear(4, 6).double(), nn.Linear(6, 2).double()
    x = before(torch.randn(8, 4, dtype=torch.float64))
    loss = after(layer(torch.zeros_like(x), x).value).square().mean()
    loss.backward()
    for module in (before, layer, after):
        for p in module.parameters():
            assert p.grad is not None
            assert p.grad.abs().sum() > 0


def test_dropout_is_constant_within_a_solve_and_new_for_the_next() -> None:
    """FixedPoint resets the random number generator before every call of its cell."""
    torch.manual_seed(0)

    class Cell(nn.Module):
        def forward(self, y, x):
            return nn.functional.dropout(0.5 * torch.tanh(y) + x, 0.3, self.training)

    layer = FixedPoint(Cell())
    x = torch.randn(4, 32)
    first, second = layer(torch.zeros(4, 32), x), layer(torch.zeros(4, 32), x)
    assert first.outcome.converged
    assert not torch.equal(first.value, second.value)
    layer.eval()
    assert torch.equal(layer(torch.zeros(4, 32), x).value, layer(torch.zeros(4, 32), x).value)


def test_a_layer_takes_keyword_inputs_and_prints_its_options() -> None:
    """The cell receives positional and keyword inputs; extra_repr names solver, stop rule and gradient."""

    class Cell(nn.Module):
        def forward(self, y, x, *, scale):
            return scale * torch.tanh(y) + x

    layer = FixedPoint(Cell(), solver=Picard(), stop=Steps(2), gradient=Neumann(3), causal=True)
    x = torch.ones(2, 3, 4)
    assert torch.equal(layer(torch.zeros_like(x), x, scale=0.0).value, x)
    for part in ("Picard(damping=1.0)", "Steps(n=2)", "Neumann(terms=3, clip=None)", "causal=True", "Cell()"):
        assert part in repr(layer)


@pytest.mark.parametrize("gradient", ALL, ids=by_name)
def test_a_compiled_update_has_the_same_gradient(gradient) -> None:
    """torch.compile of the update does not change its gradient."""
    w, x = problem()
    compiled = torch.compile(lambda y, w, x: torch.tanh(y @ w.T + x), backend="aot_eager")

    def run(update):
        y = fixed_point(
            lambda y: update(y, w, x), torch.zeros_like(x), stop=Tolerance(rtol=1e-10), gradient=gradient
        ).value
        return torch.autograd.grad(y.pow(3).sum(), (w, x))

    for a, b in zip(run(compiled), run(lambda y, w, x: torch.tanh(y @ w.T + x)), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_an_adjoint_solve_that_does_not_converge_warns() -> None:
    """The backward pass reports its outcome as a warning."""
    w, x = problem()
    y = solved(w, x, Implicit(solver=Picard(), stop=Tolerance(rtol=1e-12, max_evaluations=2)))
    with pytest.warns(RuntimeWarning, match="Implicit gradient: 3 of 3"):
        y.sum().backward()


@pytest.mark.parametrize(
    "make", [lambda: Neumann(-1), lambda: Neumann(clip=0), lambda: Phantom(steps=0), lambda: Phantom(damping=0)]
)
def test_wrong_settings_raise_a_config_error(make) -> None:
    """Numbers out of range are refused at construction."""
    with pytest.raises(ConfigError):
        make()


def test_a_causal_solve_without_a_batch_has_the_exact_gradient() -> None:
    """Its tokens are one row of the adjoint system, not independent rows."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(4, 4, generator=generator, dtype=torch.float64) / 8
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    first = (torch.arange(12) > 0).double()[:, None]
    update = lambda y: torch.tanh(0.9 * y.roll(1, -2) * first + y @ w + x)  # noqa: E731
    stop = Tolerance(rtol=1e-10, patience=None)
    grads = [
        torch.autograd.grad(
            fixed_point(update, y0, causal=True, stop=stop, gradient=Implicit(stop=stop)).value[..., -1, :].sum(), x
        )[0]
        for y0 in (torch.zeros(12, 4).double(), torch.zeros(1, 12, 4).double())
    ]
    assert torch.allclose(grads[0], grads[1], atol=1e-9)
    assert grads[0][0].abs().max() > 1e-5


def test_a_large_cotangent_of_one_row_does_not_erase_another() -> None:
    x = torch.zeros(2, 3, dtype=torch.float16, requires_grad=True)
    value = fixed_point(lambda y: 0.5 * y + x, torch.zeros_like(x), gradient=Implicit()).value
    (grad,) = torch.autograd.grad(value, x, torch.tensor([[1e-4], [3e4]], dtype=torch.float16).expand(2, 3))
    assert torch.allclose(grad[0].float(), torch.full((3,), 2e-4), rtol=0.05)


def test_second_derivatives_of_implicit_pass_gradgradcheck() -> None:
    """With order=2; also of one solve inside another, and of a nested state."""
    second = Implicit(stop=EXACT.stop, order=2)
    w, x = problem()
    w, x = w.detach()[:3, :3].clone().requires_grad_(), x.detach()[:2, :3].clone().requires_grad_()

    def inside(w, x):
        return solved(w, x + solved(w, x, second), second)

    def nested(w, x):
        zero = torch.zeros_like(x)
        update = lambda s: (torch.tanh(s[1] @ w.T + x), 0.5 * s[0])  # noqa: E731
        return torch.mul(*fixed_point(update, (zero, zero), gradient=second, stop=TIGHT).value)

    for function in (lambda w, x: solved(w, x, second), inside, nested):
        assert torch.autograd.gradcheck(function, (w, x))
        assert torch.autograd.gradgradcheck(function, (w, x))


def test_a_third_derivative_is_refused() -> None:
    """It would be wrong with order=2."""
    w, x = problem()
    (first,) = torch.autograd.grad(solved(w, x, Implicit(stop=EXACT.stop, order=2)).pow(3).sum(), x, create_graph=True)
    with pytest.raises(ConfigError, match="Unrolled"):
        torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(ConfigError, match="order=3"):
        Implicit(order=3)


@pytest.mark.parametrize("trace_gradient", [OneStep(), Neumann(1), Phantom(steps=1), Phantom(steps=2), EXACT], ids=repr)
@pytest.mark.parametrize("causal", [False, True])
def test_points_of_the_trace_have_gradients(trace_gradient, causal: bool) -> None:
    """Each as if the solve had ended there; a FixedPoint passes the option on."""
    w, x = problem()
    x = x.detach()[None].requires_grad_()
    options = {"solver": Picard(), "causal": causal}
    update = lambda y: torch.tanh(y @ w.T + x)  # noqa: E731

    def loss(points) -> torch.Tensor:
        return sum((i + 1) * point.pow(3).sum() for i, point in enumerate(points))

    trace = fixed_point(
        update, torch.zeros_like(x), stop=Steps(9), trace=[2, 4, 9], trace_gradient=trace_gradient, **options
    ).trace
    alone = [
        fixed_point(update, torch.zeros_like(x), stop=Steps(n), gradient=trace_gradient, **options).value
        for n in (2, 4, 9)
    ]
    assert torch.allclose(trace, torch.stack(alone), atol=1e-14)
    for a, b in zip(torch.autograd.grad(loss(trace), (w, x)), torch.autograd.grad(loss(alone), (w, x)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    layer = FixedPoint(nn.Linear(5, 5).double(), stop=Steps(3), trace=[1, 2], trace_gradient=trace_gradient)
    assert layer(torch.zeros(3, 5).double()).trace.requires_grad
    with torch.no_grad():
        assert not layer(torch.zeros(3, 5).double()).trace.requires_grad


@pytest.mark.parametrize(
    "options",
    [{"trace_gradient": OneStep()}, {"trace": [1], "trace_gradient": Unrolled()}, {"trace_gradient": OneStep}],
)
def test_a_trace_gradient_that_cannot_work_is_refused(options) -> None:
    with pytest.raises(ConfigError, match="trace_gradient"):
        fixed_point(torch.cos, torch.zeros(2, 1), **options)


@pytest.mark.parametrize("solver", [Anderson(), Broyden()], ids=by_name)
def test_rejected_steps_outside_the_domain_leave_the_unrolled_gradient_finite(solver) -> None:
    """y = a √y from a start at which the solver steps below zero: y = a² and dy/da = 2a."""
    a = torch.full((2, 3), 0.6, dtype=torch.float64, requires_grad=True)
    left_domain = []

    def update(y):
        left_domain.append(bool((y < 0).any()))
        return a * torch.sqrt(y)

    y0 = torch.tensor([[0.05, 0.025, 0.045]] * 2, dtype=torch.float64)
    value = fixed_point(update, y0, solver=solver, gradient=Unrolled(), stop=Tolerance(rtol=1e-10)).value
    assert any(left_domain)
    assert torch.allclose(torch.autograd.grad(value.sum(), a)[0], 2 * a, atol=1e-6)


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden(), BestSoFar(Anderson())], ids=by_name)
@pytest.mark.parametrize("stop", [Tolerance(), Tolerance(norm="rms"), Tolerance(norm="max"), Steps(3)], ids=repr)
def test_states_without_unknowns_or_rows_are_solved(solver, stop) -> None:
    """An empty equation has converged, and its gradient is empty."""
    for shape in ((3, 0), (0, 3), (0, 0), (2, 0, 3)):
        for options in ({}, {"equation_dims": len(shape) - 1}, {"causal": True}):
            shift = torch.ones(shape, requires_grad=True)
            solution = fixed_point(
                lambda y, c=shift: 0.5 * y + c, torch.zeros(shape), solver=solver, stop=stop, **options
            )
            assert solution.value.shape == shape
            assert solution.outcome.converged or stop.is_fixed_depth
            solution.value.sum().backward()
            assert shift.grad.shape == shape


@pytest.mark.parametrize("gradient", ALL, ids=by_name)
def test_vectorized_jacobians_are_right_or_refused(gradient) -> None:
    """PyTorch's older vmap cannot map a linear solve."""
    w, x = problem()
    f = lambda x: solved(w.detach(), x, gradient)  # noqa: E731
    expected = torch.autograd.functional.jacobian(f, x)
    for strategy in ("reverse-mode", "forward-mode"):
        call = lambda s=strategy: torch.autograd.functional.jacobian(f, x, vectorize=True, strategy=s)  # noqa: E731
        if isinstance(gradient, Implicit):
            with pytest.raises(ConfigError, match="jacrev"):
                call()
        else:
            assert torch.allclose(call(), expected, atol=1e-5)


@pytest.mark.parametrize("gradient", ALL, ids=by_name)
def test_reverse_mode_through_a_functional_jvp_is_right_or_refused(gradient) -> None:
    """It must not silently lose the gradient of the weights."""
    w, x = problem()
    x = x.detach()
    value, tangent = torch.func.jvp(lambda x: solved(w, x, gradient), (x,), (torch.ones_like(x),))
    if gradient.is_traceable and not isinstance(gradient, OneStep):
        expected = torch.autograd.grad(solved(w, x, gradient).sum(), w)[0]
        assert torch.allclose(torch.autograd.grad(value.sum(), w)[0], expected)
        return
    for output in (value, tangent):
        with pytest.raises(ConfigError, match="forward_ad"):
            torch.autograd.grad(output.sum(), w, retain_graph=True)
