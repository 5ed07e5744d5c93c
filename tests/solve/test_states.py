"""States of several tensors, zero equilibria, norms, auxiliary results and budgets of evaluation."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from attractor import (
    Anderson,
    Broyden,
    ConfigError,
    DataError,
    FixedPoint,
    Implicit,
    Neumann,
    NotConvergedError,
    OneStep,
    Phantom,
    Picard,
    Status,
    Steps,
    Tolerance,
    Unrolled,
    fixed_point,
)


@dataclass
class Pair:
    position: Tensor
    velocity: Tensor


class Named(NamedTuple):
    first: Tensor
    second: Tensor


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


W = 0.3 * normal(7, 7, seed=1, dtype=torch.float64) / 7**0.5
C = normal(5, 7, seed=2, dtype=torch.float64)


def flat_update(y: Tensor) -> Tensor:
    return torch.tanh(y @ W.to(y.dtype)) + C.to(y.dtype)


def nested(make, split):
    """Return ``flat_update`` as an update of a structure: ``make`` builds it of two parts, ``split`` takes it apart."""

    def update(state):
        y = torch.cat([part.flatten(1) for part in split(state)], dim=1)
        out = flat_update(y)
        return make(out[:, :3], out[:, 3:].reshape(5, 2, 2))

    return update


STRUCTURES = {
    "tuple": (lambda a, b: (a, b), lambda s: s),
    "list in a dictionary": (lambda a, b: {"x": [a], "z": b}, lambda s: (s["x"][0], s["z"])),
    "named tuple": (Named, lambda s: s),
    "dataclass": (Pair, lambda s: (s.position, s.velocity)),
}


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", STRUCTURES)
def test_a_nested_state_is_solved_like_the_packed_one(name: str, solver) -> None:
    """Value, residual, evaluations and trace agree bit for bit, and the structure is that of ``y0``."""
    make, split = STRUCTURES[name]
    zeros = torch.zeros(5, 7, dtype=torch.float64)
    stop = Tolerance(rtol=1e-9)
    flat = fixed_point(flat_update, zeros, solver=solver, stop=stop, trace=True)
    y0 = make(zeros[:, :3], zeros[:, 3:].reshape(5, 2, 2))
    found = fixed_point(nested(make, split), y0, solver=solver, stop=stop, trace=True)
    assert type(found.value) is type(y0)
    assert found.outcome.converged
    a, b = split(found.value)
    assert torch.equal(torch.cat([a, b.flatten(1)], 1), flat.value)
    assert torch.equal(found.residual, flat.residual)
    assert torch.equal(found.evaluations, flat.evaluations)
    assert torch.equal(split(found.trace)[1].flatten(2), flat.trace[:, :, 3:])
    assert "converged=5/5" in repr(found)


@pytest.mark.parametrize("gradient", [OneStep(), Neumann(2), Implicit(), Phantom(steps=2), Unrolled()], ids=repr)
def test_gradients_of_a_nested_state_are_those_of_the_packed_one(gradient) -> None:
    weight = W.clone().requires_grad_()
    grads = []
    for y0 in (torch.zeros(5, 7, dtype=torch.float64), (torch.zeros(5, 3).double(), torch.zeros(5, 4).double())):

        def update(state):
            out = torch.tanh((state if isinstance(state, Tensor) else torch.cat(state, 1)) @ weight) + C
            return out if isinstance(state, Tensor) else (out[:, :3], out[:, 3:])

        value = fixed_point(update, y0, gradient=gradient, stop=Tolerance(rtol=1e-9)).value
        parts = [value] if isinstance(value, Tensor) else value
        grads.append(torch.autograd.grad(sum(part.square().sum() for part in parts), weight)[0])
    assert torch.allclose(grads[0], grads[1], atol=1e-12)


def test_dtypes_of_leaves_may_differ_and_residuals_hold_at_the_returned_value() -> None:
    """A bf16 leaf next to a float64 one: each keeps its dtype, and the residual is measured at the rounded values."""
    a0, b0 = torch.zeros(5, 4, dtype=torch.bfloat16), torch.zeros(5, 3, dtype=torch.float64)

    def update(state):
        a, b = state
        return (0.3 * torch.cos(a) + 0.1 * b.mean(1, True).to(a.dtype), 0.5 * torch.sin(b) + a.double().mean(1, True))

    found = fixed_point(update, (a0, b0), stop=Tolerance(rtol=2e-2))
    assert [leaf.dtype for leaf in found.value] == [torch.bfloat16, torch.float64]
    assert found.outcome.converged
    after = update(found.value)
    norm = lambda state: sum(leaf.double().square().sum(1) for leaf in state).sqrt()  # noqa: E731
    change = norm([x.double() - y.double() for x, y in zip(after, found.value, strict=True)])
    assert torch.allclose(change / norm(found.value), found.residual, rtol=1e-6)


def test_complex_states_are_solved_and_differentiated() -> None:
    """z = c + z²/4 has the solution 2 − 2·√(1 − c); its derivative is known too."""
    c = (0.3 * normal(6, 2, dtype=torch.float64) + 0.2j * normal(6, 2, seed=3, dtype=torch.float64)).requires_grad_()
    found = fixed_point(
        lambda z: c + z * z / 4,
        torch.zeros_like(c),
        stop=Tolerance(rtol=1e-11),
        gradient=Implicit(stop=Tolerance(rtol=1e-11)),
    )
    expected = 2 - 2 * torch.sqrt(1 - c)
    assert torch.allclose(found.value, expected)
    assert found.residual.shape == (6,)
    (grad,) = torch.autograd.grad(found.value.abs().square().sum(), c)
    (expected_grad,) = torch.autograd.grad(expected.abs().square().sum(), c)
    assert torch.allclose(grad, expected_grad)


def test_states_may_be_conjugated_views() -> None:
    """Of the start and of the update's result."""
    start = torch.tensor([[1 + 2j, 3 - 1j]]).conj()
    found = fixed_point(lambda z: (0.5 * z).conj(), start, stop=Tolerance(rtol=1e-5))
    assert found.value.abs().max() < 1e-3


def test_causal_nested_states_keep_causality() -> None:
    """(B, T, D) beside (B, T): a change to a later token changes earlier ones by exactly zero."""
    x = normal(2, 9, 4)

    def update(state):
        h, s = state["h"], state["s"]
        before = h.cumsum(1) / torch.arange(1, 10).view(1, 9, 1)
        return {"h": x + 0.4 * torch.tanh(before) + 0.1 * s[..., None], "s": 0.5 * torch.cos(s) + 0.1 * before.mean(-1)}

    y0 = {"h": torch.zeros(2, 9, 4), "s": torch.zeros(2, 9)}
    changed = {name: leaf.clone() for name, leaf in y0.items()}
    changed["h"][:, 6:] += 100
    a, b = (fixed_point(update, start, causal=True, equation_dims=1) for start in (y0, changed))
    assert a.residual.shape == (2, 9)
    for name in y0:
        assert torch.equal(a.value[name][:, :6], b.value[name][:, :6])


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_an_equilibrium_of_zero_converges_at_every_magnitude(solver, scale: float) -> None:
    """The relative residual of y ↦ y/2 is constant; the size at the start decides when y is zero."""
    start = torch.full((3, 4), scale)
    found = fixed_point(lambda y: 0.5 * y, start, solver=solver)
    assert found.outcome.converged
    assert found.value.abs().max() < 1e-6 * scale
    assert found.residual.isfinite().all()


def test_atol_is_an_absolute_bound() -> None:
    """Converged where either bound holds."""
    start = torch.ones(3, 4, dtype=torch.float64)
    found = fixed_point(lambda y: 0.5 * y, start, solver=Picard(), stop=Tolerance(rtol=1e-12, atol=1e-3))
    assert found.outcome.converged
    assert 1e-4 < float(found.value.norm(dim=1).max()) < 2e-3


@pytest.mark.parametrize("norm", ["l2", "rms", "max", lambda x: x.abs().sum(1)])
def test_residuals_are_in_the_chosen_norm(norm) -> None:
    functions = {
        "l2": lambda x: x.norm(dim=1),
        "rms": lambda x: x.square().mean(1).sqrt(),
        "max": lambda x: x.abs().amax(1),
    }
    size = functions[norm] if isinstance(norm, str) else norm
    y0 = torch.zeros(5, 7, dtype=torch.float64)
    found = fixed_point(flat_update, y0, stop=Tolerance(rtol=1e-6, norm=norm))
    assert found.outcome.converged
    change = flat_update(found.value) - found.value
    assert torch.allclose(found.residual, size(change) / size(found.value), rtol=1e-6, atol=1e-12)
    loose = Tolerance(rtol=1e-12, atol=1e-2, norm=norm)
    bounded = fixed_point(flat_update, y0, solver=Picard(), stop=loose)
    assert (size(flat_update(bounded.value) - bounded.value) < 1e-2).all()


def test_aux_of_the_tracked_call_comes_back() -> None:
    """With gradients it is evaluated at the solution and differentiable; without, it is that of the last call."""
    weight = W.clone().requires_grad_()

    def update(y):
        h = torch.tanh(y @ weight)
        return h + C, {"hidden": h, "step": "any object"}

    y0 = torch.zeros(5, 7, dtype=torch.float64)
    found = fixed_point(update, y0, has_aux=True)
    assert torch.allclose(found.aux["hidden"], torch.tanh(found.value @ weight))
    assert found.aux["step"] == "any object"
    assert torch.autograd.grad(found.aux["hidden"].sum(), weight)[0].abs().sum() > 0
    with torch.no_grad():
        assert fixed_point(update, y0, has_aux=True).aux["hidden"].shape == (5, 7)
    layer = FixedPoint(nn.Identity(), has_aux=True, stop=Steps(1))
    with pytest.raises(ConfigError, match="must return"):
        layer(y0)


def test_evaluation_mode_may_have_another_budget() -> None:
    layer = FixedPoint(nn.Linear(4, 4), stop=Steps(2), eval_stop=Steps(5))
    counts = [layer.train(train)(torch.zeros(3, 4)).outcome.calls for train in (True, False)]
    assert counts == [2, 5]


def test_throw_carries_the_nested_solution() -> None:
    with pytest.raises(NotConvergedError) as error:
        fixed_point(lambda s: (2 * s[0] + 1,), (torch.ones(3, 2),), solver=Picard(), throw=True)
    assert error.value.solution.value[0].shape == (3, 2)
    assert (error.value.solution.outcome.status != Status.CONVERGED).all()


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fixed_point(lambda s: s, {"a": ONES, "b": torch.ones(4, 3)}), r"y0\['b'\] of shape \(4, 3\)"),
        (
            lambda: fixed_point(lambda s: s, {"a": ONES, "n": torch.ones(2, dtype=torch.long)}),
            r"y0\['n'\] is torch.int",
        ),
        (lambda: fixed_point(lambda s: s, {"a": ONES, "n": torch.ones(2) > 0}), "close over|Close over"),
        (lambda: fixed_point(lambda s: s, ()), "holds no tensor"),
        (lambda: fixed_point(lambda s: s[0], (ONES, ONES)), r"y0\[0\] is missing, y0\[1\] is missing, y0 is new"),
        (lambda: fixed_point(lambda s: {"a": ONES, "c": ONES}, {"a": ONES, "b": ONES}), r"y0\['b'\] is missing"),
        (lambda: fixed_point(lambda s: [s[0], s[1]], (ONES, ONES)), "not PyTreeSpec|not TreeSpec"),
        (lambda: fixed_point(lambda s: s, (ONES, ONES.to("meta"))), r"y0\[1\] is on meta and y0\[0\] on cpu"),
        (lambda: fixed_point(lambda s: (s[0], s[1][:, :1]), (ONES, ONES)), r"\(2, 1\) torch.float32 for y0\[1\]"),
        (lambda: fixed_point(lambda s: (s[0], s[1].double()), (ONES, ONES)), r"float64 for y0\[1\]"),
        (lambda: fixed_point(lambda s: s, (ONES, ONES), equation_dims=3), "equation_dims=3"),
        (
            lambda: fixed_point(lambda y: y, ONES, stop=Tolerance(norm=lambda x: x.sum())),
            "one floating-point number for each of the 2",
        ),
        (
            lambda: fixed_point(lambda y: y, ONES, stop=Tolerance(norm=lambda x: x.norm(dim=1).long())),
            r"\(2,\) torch.int64",
        ),
        (lambda: Tolerance(norm="l1"), "norm='l1'"),
        (lambda: Tolerance(atol=-1.0), "atol"),
        (lambda: Tolerance(atol=float("nan")), "atol"),
        (lambda: FixedPoint(nn.Identity(), eval_stop=3), "got 3"),
    ],
)
def test_states_that_cannot_work_raise_one_clear_sentence(call, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        call()


def test_a_nested_start_must_be_finite() -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        fixed_point(lambda s: s, (ONES, ONES / 0))


def test_a_layer_survives_copying_pickling_inference_mode_and_threads() -> None:
    """Eight threads solve at once, with gradients, and find what one finds."""
    layer = FixedPoint(nn.Linear(4, 4), stop=Tolerance(rtol=1e-6), gradient=Implicit())
    with torch.no_grad():
        layer.cell.weight.mul_(0.3)
    y0 = torch.zeros(3, 4)
    expected = layer(y0).value
    for copy in (deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copy(y0).value, expected)
    with torch.inference_mode():
        assert torch.equal(layer(y0).value, expected)

    def work(_: int) -> Tensor:
        value = layer(y0).value
        return torch.autograd.grad(value.sum(), layer.cell.weight)[0]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(32)))
    assert all(torch.equal(one, found[0]) for one in found)
