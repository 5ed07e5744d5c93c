"""TRM, EqR, HRM, TRM-DEQ and the Transformer: equal to their authors' loops, and reasoners with the common interface."""

import copy
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from attractor import ConfigError, DataError, recipes
from attractor.config import from_dict, to_dict
from attractor.models.reasoning import (
    HRM,
    TRM,
    TRMDEQ,
    AttractorReasonerConfig,
    EqR,
    EqRConfig,
    HRMConfig,
    ReasonerConfig,
    TransformerConfig,
    TransformerReasoner,
    TRMConfig,
    TRMDEQConfig,
)
from attractor.nn import GridNetworkConfig, TRMUpdateConfig, compile_blocks
from attractor.nn.grid import swiglu_hidden
from attractor.objectives import DeepSupervision, DeepSupervisionConfig

NETWORK = GridNetworkConfig(width=16, hidden=32, cell_hidden=16, num_cells=16, num_heads=2, mixing="attention")
SYMBOLS = {"num_symbols": 5, "num_classes": 5}
UPDATE = TRMUpdateConfig(network=NETWORK, num_latent=2)
CONFIGS: dict[str, ReasonerConfig] = {
    "trm": TRMConfig(**SYMBOLS, update=UPDATE),
    "hrm": HRMConfig(**SYMBOLS, network=NETWORK, num_latent=3),
    "transformer": TransformerConfig(**SYMBOLS, network=NETWORK, halting=True),
    "eqr": EqRConfig(**SYMBOLS, update=UPDATE, noise=0.0),
    "trm-deq": TRMDEQConfig(
        **SYMBOLS, network=replace(NETWORK, num_cells=22, grid_positions=False), num_name_tokens=6, max_evaluations=3
    ),
}


def build(config: ReasonerConfig):
    torch.manual_seed(0)
    return config.build()


def questions(batch: int = 3) -> torch.Tensor:
    return torch.randint(0, 5, (batch, 4, 4), generator=torch.Generator().manual_seed(0))


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return {n: g for (n, _), g in zip(model.named_parameters(), found, strict=True) if g is not None}


TINY = GridNetworkConfig(mixing="attention", grid_positions=False)
WIDE = replace(TINY, width=512, hidden=swiglu_hidden(512), num_heads=8)
MIXER = GridNetworkConfig(width=512, hidden=swiglu_hidden(512), cell_hidden=swiglu_hidden(81), num_cells=81)


def tiny_trm(size: int) -> TRMUpdateConfig:
    return TRMUpdateConfig(network=GridNetworkConfig(num_cells=size**2), num_latent=3)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (TRMConfig(update=TRMUpdateConfig(network=MIXER, num_latent=6)), 4_854_274),
        (TRMConfig(update=TRMUpdateConfig(network=WIDE, num_latent=6)), 6_827_010),
        (HRMConfig(network=replace(WIDE, num_layers=4)), 27_274_242),
        (TransformerConfig(network=replace(WIDE, num_layers=8)), 27_273_216),
        (TRMConfig(num_symbols=7, num_classes=7, update=tiny_trm(6)), 324_610),
        (TRMConfig(update=tiny_trm(9)), 359_938),
        (HRMConfig(num_symbols=7, num_classes=7, network=TINY), 854_018),
        (HRMConfig(network=TINY), 854_786),
        (TransformerConfig(network=replace(TINY, num_layers=4)), 854_528),
    ],
)
def test_models_have_the_published_size(config: ReasonerConfig, count: int) -> None:
    """5M, 7M, 27M and 27M parameters as published; a configuration survives the conversion to plain data and back."""
    with torch.device("meta"):
        assert sum(p.numel() for p in build(config).parameters()) == count
    assert from_dict(type(config), to_dict(config)) == config


@pytest.mark.parametrize("task", ["sudoku/extreme", "maze/hard"])
def test_wide_recipes_have_as_many_parameters_as_hrm(task: str) -> None:
    """Attractor and TRM have HRM's 27M within 2 %; so have the two forms of Attractor Models, in eight layers."""
    with torch.device("meta"):
        small, large, *wide = (
            sum(p.numel() for p in build(recipes.get(f"{task}{name}").model).parameters())
            for name in ("", "-hrm", "-27m", "-27m-trm", "-trm-deq", "-paper")
        )
    assert small < 7e6
    assert all(abs(count / large - 1) < 0.02 for count in wide)


@torch.no_grad()
def test_trm_is_an_attractor_reasoner_without_damping_and_noise() -> None:
    """With equal weights and initial states, answers are equal over three segments."""
    trm = build(CONFIGS["trm"]).eval()
    config = AttractorReasonerConfig(
        **SYMBOLS, update=UPDATE, damping=1.0, noise=0.0, random_init=False, evaluations_per_segment=3, backprop_steps=1
    )
    attractor = build(config).eval()
    attractor.embedding.weight.copy_(4 * trm.embedding.weight)
    attractor.update.load_state_dict(trm.update.state_dict())
    attractor.head.weight.copy_(trm.lm_head.weight)
    attractor.head.bias.zero_()
    q, a, b = questions(), trm.init_state(questions()), trm.init_state(questions())
    for _ in range(3):
        left, right = trm(q, a), attractor(q, b)
        a, b = left.solution.value, right.solution.value
        assert torch.equal(left.logits, right.logits)


@pytest.mark.parametrize("mixing", ["mixer", "attention"])
def test_trm_equals_its_authors_loop(mixing: str) -> None:
    """Only the last cycle has gradients; answers, state and every gradient are equal."""
    model = build(replace(CONFIGS["trm"], update=replace(UPDATE, network=replace(NETWORK, mixing=mixing))))
    q = questions()
    net, x = model.update.net, model.embedding(q).flatten(1, 2)
    grid, angles = q.shape[1:], model.update.net.angles(q.shape[1:], x)
    y, z = (v.expand(3, 16, -1) for v in (model.H_init, model.L_init))
    for cycle in range(3):
        with torch.set_grad_enabled(cycle == 2):
            for _ in range(2):
                z = net(z, y + x, grid, angles)
            y = net(y, z, grid, angles)
    expected = model.lm_head(y).view(3, 4, 4, 5)
    output = model(q)
    assert torch.equal(output.logits, expected)
    assert torch.equal(output.solution.value.flatten(1, 2), torch.cat([y, z], dim=-1))
    assert torch.equal(output.halt, model.q_head.weight[0] @ y[:, 0].T + model.q_head.bias[0])
    a, b = (gradients(model, logits.square().sum()) for logits in (output.logits, expected))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-5), name


def test_hrm_differentiates_one_step_of_each_network() -> None:
    """The one-step gradient: only the last step of each network has gradients."""
    model, q = build(CONFIGS["hrm"]), questions()
    x = model.embedding(q).flatten(1, 2)
    grid, angles = q.shape[1:], model.L_level.angles(q.shape[1:], x)
    high, low = (v.expand(3, 16, -1) for v in (model.H_init, model.L_init))
    with torch.no_grad():
        for cycle in range(2):
            for _ in range(3 if cycle == 0 else 2):
                low = model.L_level(low, high + x, grid, angles)
            if cycle == 0:
                high = model.H_level(high, low, grid, angles)
    low = model.L_level(low, high + x, grid, angles)
    high = model.H_level(high, low, grid, angles)
    expected = model.lm_head(high).view(3, 4, 4, 5)
    output = model(q)
    assert torch.equal(output.logits, expected)
    a, b = (gradients(model, logits.square().sum()) for logits in (output.logits, expected))
    assert a.keys() == b.keys() == {n for n, _ in model.named_parameters() if not n.startswith("q_head")}
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-5), name


def test_eqr_equals_its_authors_loop() -> None:
    """Every call of the network is damped and adds noise; only the last cycle has gradients."""
    model, q, noise = build(replace(CONFIGS["eqr"], noise=0.1)), questions(), torch.Generator()
    net, x = model.update.net, model.embedding(q).flatten(1, 2)
    grid, angles = q.shape[1:], model.update.net.angles(q.shape[1:], x)
    start = model.init_state(q)
    y, z = start.flatten(1, 2).chunk(2, dim=-1)
    torch.manual_seed(7)
    noise.manual_seed(int(torch.randint(2**62, ())))
    for cycle in range(3):
        with torch.set_grad_enabled(cycle == 2):
            e = 0.1 * torch.randn(3, 3, 4, 4, 16, generator=noise).flatten(2, 3)
            for k in range(2):
                z = 0.05 * z + 0.95 * net(z, y + x, grid, angles) + e[k]
            y = 0.05 * y + 0.95 * net(y, z, grid, angles) + e[2]
    torch.manual_seed(7)
    output, expected = model(q, start), model.lm_head(y).view(3, 4, 4, 5)
    assert torch.allclose(output.logits, expected, atol=1e-6)
    a, b = (gradients(model, logits.square().sum()) for logits in (output.logits, expected))
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-5) for name in a)


def test_eqr_starts_from_truncated_normal_numbers() -> None:
    """Of the given deviations, drawn per cell and channel; a generator makes them reproducible."""
    model, q = build(replace(CONFIGS["eqr"], init_std=(1.0, 0.5))), torch.zeros(50, 20, 20, dtype=torch.long)
    a, b = (model.init_state(q, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    for part, std in zip(a.chunk(2, dim=-1), (1.0, 0.5), strict=True):
        assert abs(part.std() / std - 1) < 0.01
        assert part.abs().max() <= 2 * std / 0.8796
    assert (a[:, 0, 0] != a[:, 0, 1]).all()


def test_trm_deq_solves_its_latent_and_differentiates_the_calls_after() -> None:
    """``z* = net(z* + y + x)``, two tracked calls, then ``y ← net(y + z*)``; the state has all cells and the name's."""
    model = build(replace(CONFIGS["trm-deq"], tolerance=1e-6, max_evaluations=200, evaluations_per_segment=1))
    with torch.no_grad():
        for weight in model.net.parameters():
            weight *= 0.3  # contracts
        model.puzzle_emb.normal_()
    q = questions()
    x = torch.cat([4 * model.puzzle_emb.view(1, -1, 16).expand(3, -1, -1), model.embedding(q).flatten(1, 2)], dim=1)
    grid, angles = x.shape[1:2], model.net.angles(x.shape[1:2], x)
    y, z = (v.expand(3, 22, -1) for v in (model.H_init, model.L_init))
    with torch.no_grad():
        for _ in range(200):
            z = model.net(z, y + x, grid, angles)
    for _ in range(2):
        z = model.net(z, y + x, grid, angles)
    expected = model.net(y, z, grid, angles)
    output = model(q)
    assert output.solution.value.shape == (3, 6, 4, 32)  # two rows of name tokens, whose first two cells are unused
    found = output.solution.value.flatten(1, 2)
    assert torch.equal(found[:, :2], model.init_state(q).flatten(1, 2)[:, :2])
    assert torch.allclose(found[:, 2:], torch.cat([expected, z], dim=-1), atol=1e-4)
    assert torch.allclose(output.halt, model.q_head.weight[0] @ expected[:, 0].T + model.q_head.bias[0], atol=1e-4)
    logits = model.lm_head(expected[:, 6:]).view(3, 4, 4, 5)
    a, b = (gradients(model, logits.square().sum()) for logits in (output.logits, logits))
    assert "puzzle_emb" in a
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-3) for name in a)


@pytest.mark.parametrize("name", ["trm", "trm-deq"])
def test_training_can_penalize_the_jacobian_of_attention(name: str) -> None:
    """For TRM-DEQ it is that of the latent's map, which is solved; it has no gradient for the answer's head."""
    model, q = build(CONFIGS[name]), questions()
    update, point = model.penalized_map(q, model(q).solution.value.detach())
    assert point.shape == ((3, 22, 16) if name == "trm-deq" else (3, 4, 4, 32))
    assert not torch.allclose(update(point), point)
    objective = DeepSupervision(
        q.numpy(),
        q.numpy(),
        DeepSupervisionConfig(batch_size=2, jacobian_weight=0.1),
        init_state=model.init_state,
        augment=lambda q, a, rng: (q, a),
    )
    loss, metrics = objective.step(model)
    assert metrics["jacobian"] > 0
    assert all(value.isfinite().all() for value in gradients(model, loss).values())


@torch.no_grad()
@pytest.mark.parametrize("name", ["trm", "hrm", "eqr"])
def test_noise_makes_restarts_of_one_trained_model_differ(name: str) -> None:
    """No retraining is needed; without noise TRM and HRM have one trajectory, and refuse restarts."""
    model, q = build(CONFIGS[name]).eval(), questions()
    state = model.init_state(q)
    torch.manual_seed(0)
    a, b = (model(q, state, depth=3, noise=0.3).logits for _ in range(2))
    assert not torch.allclose(a, b)
    assert torch.equal(model(q, state, depth=3, noise=0.0).logits, model(q, state, depth=3).logits)
    assert model.solve(q, depth=2, breadth=2, noise=0.3).solution.evaluations.tolist() == [4, 4, 4]
    if not model.random_init:
        with pytest.raises(ConfigError, match=r"breadth=2.*or add noise"):
            model.solve(q, depth=2, breadth=2)


@pytest.mark.parametrize("name", ["transformer", "trm-deq"])
def test_noise_is_refused_where_it_has_no_effect(name: str) -> None:
    """In one sentence that says why; negative noise too."""
    model, q = build(CONFIGS[name]), questions()
    with pytest.raises(ConfigError, match=r"noise=0\.3: this model has no use for noise"):
        model.solve(q, depth=1, noise=0.3)
    with pytest.raises(ConfigError, match="negative"):
        model.solve(q, depth=1, noise=-1)


@torch.no_grad()
def test_a_transformer_ignores_its_state() -> None:
    """Any state gives the same answer, and the residual of a second evaluation is zero."""
    model, q = build(CONFIGS["transformer"]).eval(), questions()
    first = model(q)
    again = model(q, torch.randn_like(first.solution.value))
    assert torch.equal(first.logits, again.logits)
    assert model(q, first.solution.value).solution.residual.max() < 1e-5
    assert model.solve(q, max_evaluations=8).solution.evaluations.max() == 2


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_a_segment_is_equal_with_and_without_gradients(name: str) -> None:
    """Training and evaluation make the same evaluations and give the same answer; so does a copy of the model."""
    model, q = build(CONFIGS[name]).eval(), questions()
    state = model.init_state(q)
    output = model(q, state)
    with torch.enable_grad():
        tracked = model(q, state)
    assert torch.allclose(output.logits, tracked.logits, atol=1e-6)
    assert torch.equal(output.logits, model(q, state, depth=model.evaluations_per_segment).logits)
    assert torch.equal(copy.deepcopy(model)(q, state).logits, output.logits)
    assert output.halt.shape == (3,)


@pytest.mark.parametrize("name", CONFIGS)
def test_mixed_precision_is_near_float32(name: str) -> None:
    """Under autocast, states stay float32, and answers and gradients are near those of float32."""
    model, q = build(CONFIGS[name]), questions()
    state = model.init_state(q)
    full = model(q, state)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(q, state)
    assert mixed.logits.dtype == torch.bfloat16
    assert mixed.logits.shape == (3, 4, 4, 5)
    assert mixed.solution.value.dtype == torch.float32
    assert torch.allclose(mixed.logits.float(), full.logits, atol=0.2)
    a, b = (gradients(model, output.logits.float().square().sum()) for output in (full, mixed))
    assert a.keys() == b.keys()
    for key in a:
        assert torch.nn.functional.cosine_similarity(a[key].flatten(), b[key].flatten(), dim=0) > 0.95, key


@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_learns_under_deep_supervision(name: str) -> None:
    """Forty steps halve the loss of a toy task: each cell's answer is the symbol after its own."""
    model = build(CONFIGS[name])
    q = questions(64)
    objective = DeepSupervision(
        q.numpy(),
        ((q + 1) % 5).numpy(),
        DeepSupervisionConfig(batch_size=16, max_segments=2, halting_weight=0.0),
        init_state=model.init_state,
        augment=lambda q, a, rng: (q, a),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2 if name == "trm-deq" else 5e-3)
    losses = []
    for _ in range(40):
        loss, _ = objective.step(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@torch.no_grad()
def test_a_mixer_refuses_another_grid_size() -> None:
    """In every family; attention accepts any size."""
    large = torch.zeros(1, 5, 5, dtype=torch.long)
    mixer = replace(NETWORK, mixing="mixer")
    for config in (
        replace(CONFIGS["trm"], update=replace(UPDATE, network=mixer)),
        replace(CONFIGS["hrm"], network=mixer),
        replace(CONFIGS["transformer"], network=mixer),
    ):
        with pytest.raises(DataError, match="a grid of 5 × 5 cells: this model's mixer is built for grids of 16"):
            build(config)(large)
    for config in CONFIGS.values():
        assert build(config)(large).logits.shape == (1, 5, 5, 5)


def test_configurations_build_their_model() -> None:
    """Each by its own class; a halting head only where it is asked for."""
    for name, kind in (
        ("trm", TRM),
        ("eqr", EqR),
        ("hrm", HRM),
        ("trm-deq", TRMDEQ),
        ("transformer", TransformerReasoner),
    ):
        assert type(build(CONFIGS[name])) is kind
    assert not hasattr(build(TransformerConfig(network=TINY)), "q_head")


@pytest.mark.parametrize("name", CONFIGS)
def test_networks_compile_once_and_without_graph_breaks(name: str) -> None:
    """Answers and gradients stay the same, and a carried state causes no recompilation."""
    model, q = build(CONFIGS[name]), questions()
    compiled = copy.deepcopy(model)
    torch._dynamo.reset()
    compile_blocks(compiled, backend="eager")
    assert compiled.state_dict().keys() == model.state_dict().keys()
    state, graphs = model.init_state(q), counters["stats"]["unique_graphs"]
    for step in range(3):
        eager, fast = model(q, state), compiled(q, state)
        assert torch.allclose(eager.logits, fast.logits, atol=1e-4)
        a, b = (gradients(m, o.logits.square().sum()) for m, o in ((model, eager), (compiled, fast)))
        assert a.keys() == b.keys()
        for key in a:
            assert torch.allclose(a[key], b[key], rtol=1e-3, atol=1e-3), key
        found = counters["stats"]["unique_graphs"]
        assert found == graphs if step else found > graphs
        state, graphs = eager.solution.value.detach(), found
