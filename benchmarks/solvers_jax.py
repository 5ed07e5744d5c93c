"""optimistix on the problems of :mod:`benchmarks.solvers_small`, in a process of its own that needs only JAX.

Every line on standard input names a problem; the answer is the milliseconds of one jitted solve, and its error.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx


def problems(data: dict[str, np.ndarray]) -> dict[str, tuple[int, bool, Callable[[], jax.Array]]]:
    """Return for each problem: solves per measurement, whether it is float64, and the solve."""
    mean, eccentricity, weight, shift = (
        jnp.asarray(data[name]) for name in ("mean", "eccentricity", "weight", "shift")
    )
    cosine = optx.FixedPointIteration(rtol=1e-4, atol=1e-12)
    newton = optx.Newton(rtol=1e-10, atol=1e-10)
    tanh = optx.FixedPointIteration(rtol=1e-5, atol=1e-5, norm=optx.rms_norm)
    start = jnp.ones((1, 1))

    @jax.jit
    def scalar(y: jax.Array) -> jax.Array:
        return optx.fixed_point(lambda y, _: jnp.cos(y), cosine, y, max_steps=256).value

    @jax.jit
    @jax.vmap
    def kepler(mean: jax.Array, eccentricity: jax.Array) -> jax.Array:
        first = mean + eccentricity * jnp.sin(mean)
        return optx.root_find(lambda e, _: e - eccentricity * jnp.sin(e) - mean, newton, first, max_steps=256).value

    def solve(weight: jax.Array, shift: jax.Array) -> jax.Array:
        def update(y: jax.Array, args: tuple[jax.Array, jax.Array]) -> jax.Array:
            return jnp.tanh(y @ args[0]) + args[1]

        # the default would factorise a Jacobian of 16,384 × 16,384 numbers
        adjoint = optx.ImplicitAdjoint(linear_solver=lx.GMRES(rtol=1e-5, atol=1e-5))
        y0 = jnp.zeros_like(shift)
        return optx.fixed_point(update, tanh, y0, (weight, shift), max_steps=256, adjoint=adjoint).value

    forward = jax.jit(solve)
    gradient = jax.jit(jax.grad(lambda weight, shift: (solve(weight, shift) ** 2).sum()))
    return {
        "scalar": (100, True, lambda: scalar(start)),
        "kepler": (3, True, lambda: kepler(mean, eccentricity)),
        "tanh": (5, False, lambda: forward(weight, shift)),
        "tanh, gradient": (2, False, lambda: gradient(weight, shift)),
    }


def main() -> None:
    clock = time.process_time if sys.argv[2] == "1" else time.perf_counter
    data = dict(np.load(Path(sys.argv[1])))
    sides = {}
    for is_float64 in (False, True):  # float32 solves fail inside optimistix while float64 is enabled
        jax.config.update("jax_enable_x64", is_float64)
        sides[is_float64] = problems(data)
    for line in sys.stdin:
        name = line.strip()
        num, is_float64, _ = sides[True][name]
        jax.config.update("jax_enable_x64", is_float64)
        run = sides[is_float64][name][2]
        result = run().block_until_ready()
        started = clock()
        for _ in range(num):
            run().block_until_ready()
        elapsed = 1e3 * (clock() - started) / num
        error = float(np.abs(np.asarray(result, np.float64) - data[f"{name}: exact"]).max())
        print(elapsed, error, flush=True)
