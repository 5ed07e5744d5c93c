"""Identities of the language models: the attractor at depths 0 and 1, causality, and independence of the batch."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from attractor.config import change, to_dict
from attractor.errors import ConfigError, DataError
from attractor.gradient import Implicit
from attractor.models.language import (
    AttractorConfig,
    AttractorForCausalLM,
    LanguageModel,
    LoopedConfig,
    LoopedForCausalLM,
)
from attractor.models.language.loss import TokenLoss, next_token_loss
from attractor.recipes import LANGUAGE_FAMILIES, SIZES, language
from attractor.solve import Anderson, Tolerance

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def build(model_class: type = AttractorForCausalLM, config_class: type = AttractorConfig, **changes) -> LanguageModel:
    """A small model in evaluation mode; every weight changes the output."""
    torch.manual_seed(0)
    model = model_class(config_class(**{**SMALL, **changes}))
    for name, p in model.named_parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.15)
        elif "norm" in name:
            torch.nn.init.uniform_(p, 0.5, 1.5)
        elif "gate" in name:
            torch.nn.init.normal_(p)
    return model.eval()


VARIANTS = {
    "mean": lambda: build(),
    "sum": lambda: build(injection="sum"),
    "concat": lambda: build(injection="concat"),
    "deq": lambda: build(num_attractor_layers=4, start="zero", gate_limit=0.4, gate_start=0.3),
    "plain": lambda: build(num_attractor_layers=0),
    "relu2": lambda: build(hidden_act="relu2", qk_norm=False),
    "looped": lambda: build(LoopedForCausalLM, LoopedConfig, num_core_layers=2, mean_recurrence=4),
}


def tokens(batch: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, SMALL["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


def fold_gates(model: AttractorForCausalLM) -> dict[str, torch.Tensor]:
    """The weights without gates: each gate is folded into the projection before it."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for i, layer in enumerate(model.model.layers):
        for gate, projection in (("self_attn_gate", "self_attn.o_proj"), ("mlp_gate", "mlp.down_proj")):
            if f"model.layers.{i}.{gate}.raw" in state:
                state[f"model.layers.{i}.{projection}.weight"] *= getattr(layer, gate).value().detach()[:, None]
                del state[f"model.layers.{i}.{gate}.raw"]
    return state


def test_depth_one_is_the_plain_transformer_and_a_stock_qwen3() -> None:
    """With the mean injection, to 1e-5, with the same weights."""
    model = build(num_attractor_layers=2)
    ids = tokens()
    with torch.no_grad():
        once = model(ids, depth=1).logits
        plain = AttractorForCausalLM(AttractorConfig(**SMALL, num_attractor_layers=0)).eval()
        plain.load_state_dict(fold_gates(model))
        assert (plain(ids).logits - once).abs().max() < 1e-5

        qwen = Qwen3ForCausalLM(
            Qwen3Config(
                **SMALL,
                head_dim=8,
                tie_word_embeddings=True,
                rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
                attn_implementation="eager",
            )
        ).eval()
        qwen.load_state_dict(fold_gates(model))
        assert (qwen(ids).logits - once).abs().max() < 1e-5
        assert (model(ids).logits - once).abs().max() > 1e-3, "the equilibrium must differ, or nothing is tested"


def test_depth_zero_is_a_plain_transformer_with_the_first_layers() -> None:
    """It decodes the proposal."""
    model = build(num_attractor_layers=1)
    first = AttractorForCausalLM(AttractorConfig(**{**SMALL, "num_hidden_layers": 3}, num_attractor_layers=0)).eval()
    first.load_state_dict({k: v for k, v in fold_gates(model).items() if ".layers.3." not in k})
    ids = tokens()
    with torch.no_grad():
        assert (model(ids, depth=0).logits - first(ids).logits).abs().max() < 1e-5


BUDGETS = [{"depth": n} for n in (0, 1, 2, 5)] + [
    {"tolerance": 1e-2},
    {"tolerance": 1e-5},
    {"tolerance": 1e-9, "max_evaluations": 7},
]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_later_tokens_do_not_change_earlier_logits(variant: str, budget: dict) -> None:
    """Bitwise, at any depth, tolerance and limit, in float32."""
    if variant == "plain" and budget != {"depth": 1}:
        budget = {}
    model = VARIANTS[variant]()
    a, b = tokens(), tokens()
    b[:, 15:] = tokens(seed=1)[:, 15:]
    with torch.no_grad():
        before, after = model(a, **budget).logits, model(b, **budget).logits
    assert torch.equal(before[:, :15], after[:, :15])
    if not (variant in ("deq", "looped") and budget == {"depth": 0}):  # zero for all tokens
        assert not torch.equal(before[:, 15:], after[:, 15:])


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_row_does_not_depend_on_its_neighbours_or_on_padding(variant: str) -> None:
    """Alone, in a batch, and padded left or right, a text has the same logits."""
    model = VARIANTS[variant]()
    ids, padding = tokens(3, 20), torch.zeros(3, 6, dtype=torch.long)
    seen, unseen = torch.ones(3, 20, dtype=torch.long), torch.zeros(3, 6, dtype=torch.long)
    seen[1:, :9] = 0
    # A fixed depth to rounding, the equilibrium to its tolerance. Random layers that start from zero do not contract.
    solved = [] if variant == "deq" else [({"tolerance": 1e-6, "max_evaluations": 100}, 2e-4)]
    fixed = {} if variant == "plain" else {"depth": 3}
    for budget, bound in [(fixed, 1e-5), *([] if variant == "plain" else solved)]:
        with torch.no_grad():
            alone = model(ids[:1], **budget).logits
            batched = model(ids, **budget).logits
            right = model(torch.cat([ids, padding], 1), attention_mask=torch.cat([seen, unseen], 1), **budget).logits
            left = model(torch.cat([padding, ids], 1), attention_mask=torch.cat([unseen, seen], 1), **budget).logits
        assert (batched[:1] - alone).abs().max() < bound
        assert (right[:1, :20] - alone).abs().max() < bound
        assert (left[:1, 6:] - alone).abs().max() < bound


def test_documents_packed_into_a_row_do_not_see_each_other() -> None:
    """Each has the logits of reading it alone."""
    model = build()
    ids = tokens(1, 20)
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    for budget, bound in (({"depth": 3}, 1e-5), ({"tolerance": 1e-6}, 2e-4)):
        with torch.no_grad():
            packed = model(ids, position_ids=positions, **budget).logits
            assert (packed[:, :8] - model(ids[:, :8], **budget).logits).abs().max() < bound
            assert (packed[:, 8:] - model(ids[:, 8:], **budget).logits).abs().max() < bound


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("variant", ["mean", "looped", "deq"])
def test_saving_and_loading_is_exact(variant: str, tied: bool, tmp_path) -> None:
    """Through the Auto class: equal settings and bitwise equal logits."""
    model = VARIANTS[variant]()
    if not tied:
        model = type(model)(type(model.config)(**{**SMALL, "tie_word_embeddings": False})).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert to_dict(again.config) == to_dict(model.config)
    ids = tokens()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("family", LANGUAGE_FAMILIES)
@pytest.mark.parametrize("size", sorted(SIZES))
def test_a_preset_has_its_stated_number_of_weights(size: str, family: str) -> None:
    """Counted on the meta device: within 1 % of the number in ``SIZES``, for every family."""
    recipe = language(size, family)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(recipe.model)
        assert model(torch.zeros(1, 4, dtype=torch.long), depth=1).logits.shape == (1, 4, 32768)
    num = sum(p.numel() for p in model.parameters())
    assert abs(num / SIZES[size].num_weights - 1) < 0.01
    claimed = {"60m": 60e6, "140m": 135e6, "370m": 379e6, "770m": 775e6, "1.3b": 1.3e9}.get(size, num)
    assert abs(num / claimed - 1) < 0.02


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_weight_gets_a_gradient(variant: str) -> None:
    """In one training step."""
    model = VARIANTS[variant]().train()
    torch.manual_seed(0)
    model(tokens(), labels=tokens()).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("family", ["attractor", "transformer", "looped", "deq"])
def test_a_new_model_is_the_identity(family: str) -> None:
    """Every branch starts at zero, also through the Auto class; the residual of an attractor is then zero."""
    config = change(language("tiny", family).model, {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 97})
    for model in (AutoModelForCausalLM.from_config(config), AutoModelForCausalLM.from_config(config).eval()):
        last_projections = [p for name, p in model.named_parameters() if "o_proj" in name or "down_proj" in name]
        assert len(last_projections) == 8
        assert not any(p.any() for p in last_projections)
        assert all(p.std() > 0.01 for name, p in model.named_parameters() if "q_proj" in name or "embed" in name)
    if family == "attractor":
        with torch.no_grad():
            solution = model(tokens()).solution
        assert solution.residual.max() == 0


def test_the_papers_attractor_starts_with_drawn_projections_and_its_gates_learn_at_once(tmp_path) -> None:
    """Standard deviation sqrt(2/(5 D)), cut at three; the backbone's are zero; saved weights are not drawn again."""
    sizes = {"hidden_size": 64, "intermediate_size": 256, "vocab_size": 97, "num_attention_heads": 2}
    config = change(language("tiny", "paper").model, sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    attractor, std = model.model.layers[-1], (2 / (5 * 64)) ** 0.5
    for projection in (attractor.self_attn.o_proj.weight.detach(), attractor.mlp.down_proj.weight.detach()):
        assert projection.std() == pytest.approx(0.986 * std, rel=0.05)  # of a normal distribution cut at three
        assert 2 * std < projection.abs().max() <= 3 * std
    assert not any(layer.mlp.down_proj.weight.any() for layer in model.model.layers[:-1])
    model.train()(tokens(), labels=tokens()).loss.backward()
    assert all(gate.raw.grad.abs().sum() > 0 for gate in (attractor.self_attn_gate, attractor.mlp_gate))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_the_implicit_gradient_is_solved_as_the_model_is(monkeypatch) -> None:
    """With its method, tolerance and limits, for all rows; a tolerance of the call counts for both solves."""
    solved = []
    real = Implicit.attach
    monkeypatch.setattr(Implicit, "attach", lambda self, *args: solved.append(self) or real(self, *args))
    settings = {"tolerance": 2e-3, "min_evaluations": 3, "max_evaluations": 9, "window": 4, "mixing": 0.9}
    model = build(gradient="implicit", gate_limit=0.4, gate_start=0.3, **settings).train()
    stop = Tolerance(rtol=2e-3, min_evaluations=3, max_evaluations=9)
    model(tokens(), labels=tokens()).loss.backward()
    assert solved.pop() == Implicit(solver=Anderson(window=4, mixing=0.9), stop=stop)
    gradients = []
    for gradient in ("implicit", "unrolled"):
        model.config.gradient = gradient
        model.zero_grad()
        model(tokens(), labels=tokens(), tolerance=1e-6, max_evaluations=60).loss.backward()
        gradients.append(model.model.layers[-1].mlp.up_proj.weight.grad)
    assert solved.pop().stop == Tolerance(rtol=1e-6, min_evaluations=3, max_evaluations=60)
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


def test_padding_does_not_end_a_solve_in_training() -> None:
    """Two real tokens with much padding are solved as accurately as alone."""
    model = build().train()
    mask = torch.zeros(1, 40, dtype=torch.long)
    mask[:, :2] = 1
    with torch.no_grad():
        padded = model(tokens(1, 40), attention_mask=mask).solution
        alone = model(tokens(1, 40)[:, :2]).solution
    assert padded.residual[0, :2].max() < model.config.tolerance
    assert padded.evaluations[0, :2].tolist() == alone.evaluations[0].tolist()


@pytest.mark.parametrize("injection", ["mean", "sum"])
def test_the_solution_is_a_fixed_point_of_the_update(injection: str) -> None:
    """Every token is converged, and its recomputed residual is below the tolerance."""
    model = build(injection=injection)
    with torch.no_grad():
        output = model(tokens(), tolerance=1e-5)
        assert output.solution.outcome.converged
        change = (
            model.model.update(output.proposal, model.model.make_context(output.hidden))(output.hidden) - output.hidden
        )
        assert (change.norm(dim=-1) / output.hidden.norm(dim=-1)).max() < 1.1e-5


@pytest.mark.parametrize("injection", ["concat", "none"])
def test_ablations_of_the_injection_start_where_they_converge_at_once(injection: str) -> None:
    """A new model keeps its proposal, because every branch starts at zero."""
    model = AttractorForCausalLM(AttractorConfig(**SMALL, injection=injection)).eval()
    with torch.no_grad():
        output = model(tokens())
    assert torch.allclose(output.hidden, output.proposal, atol=1e-6)
    assert output.solution.evaluations.max() <= model.config.min_evaluations + 1


def test_the_equilibrium_does_not_depend_on_the_start() -> None:
    """Of an update that contracts: from noise, from zero and from the proposal."""
    models = {s: build(num_attractor_layers=2, start=s, tolerance=1e-6) for s in ("proposal", "zero", "gaussian")}
    for model in models.values():
        model.load_state_dict(models["proposal"].state_dict())
    with torch.no_grad():
        states = [model.eval()(tokens()).hidden for model in models.values()]
    assert all(torch.allclose(state, states[0], atol=1e-3) for state in states)


def test_the_loss_in_chunks_equals_the_loss_at_once() -> None:
    """Value and gradients, with some labels ignored and a bias in the head."""
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 9, 8, requires_grad=True), torch.nn.Linear(8, 30)
    weights = (hidden, head.weight, head.bias)
    labels = torch.randint(30, (2, 9))
    labels[0, 3:6] = -100
    at_once = torch.nn.functional.cross_entropy(head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    chunked = next_token_loss(hidden, head, labels, TokenLoss(), chunk=4)
    assert torch.allclose(at_once, chunked, atol=1e-6)
    for a, b in zip(torch.autograd.grad(at_once, weights), torch.autograd.grad(chunked, weights), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_loss_of_float64_logits_has_float64() -> None:
    """So that its gradients can be compared with finite differences."""
    model, ids = build().double(), torch.randint(2, 97, (2, 12), generator=torch.Generator().manual_seed(0))
    weight = model.model.norm.weight
    loss = lambda: model(ids, labels=ids, depth=2).loss  # noqa: E731
    loss().backward()
    with torch.no_grad():
        weight[3] += 1e-6
        above = loss()
        weight[3] -= 2e-6
        below = loss()
    assert above.dtype == torch.float64
    assert float((above - below) / 2e-6) == pytest.approx(float(weight.grad[3]), rel=1e-6)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    """To rounding."""
    grads = []
    for enabled in (False, True):
        model = build().train()
        if enabled:
            model.model.gradient_checkpointing = True
        model(tokens(), labels=tokens()).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("depth", [None, 0, 2])
def test_greedy_generation_chooses_the_largest_logit(depth: int | None) -> None:
    """Token by token, for padded prompts too, until the end-of-text token."""
    model = build()
    prompt = tokens(2, 5)
    mask = torch.ones_like(prompt)
    mask[1, :2] = 0
    out = model.generate(prompt, attention_mask=mask, max_new_tokens=6, do_sample=False, depth=depth)
    for row in range(2):
        ids = prompt[row : row + 1, 2 * row :]
        for chosen in out[row, 5:].tolist():
            with torch.no_grad():
                assert int(model(ids, depth=depth).logits[0, -1].argmax()) == chosen
            if chosen == model.config.eos_token_id:
                break
            ids = torch.cat([ids, torch.tensor([[chosen]])], dim=1)


def test_generation_stops_at_the_end_of_text() -> None:
    """No token comes after it."""
    model = build()
    with torch.no_grad():
        last = int(model(tokens(1, 5)).logits[0, -1].argmax())
    out = model.generate(tokens(1, 5), max_new_tokens=6, do_sample=False, eos_token_id=last)
    assert out.shape[1] == 6


def test_invalid_arguments_are_refused_in_one_sentence() -> None:
    """Ids, lengths, budgets, caches and settings."""
    model = build()
    with pytest.raises(DataError, match="97 lies outside the vocabulary of 97"):
        model(torch.full((1, 3), 97))
    with pytest.raises(DataError, match="65 tokens are more than the 64"):
        model(tokens(1, 65))
    with pytest.raises(ConfigError, match="not both"):
        model(tokens(), depth=1, tolerance=1e-3)
    with pytest.raises(ConfigError, match="rtol"):
        model(tokens(), tolerance=0.0)
    with pytest.raises(ConfigError, match="solves nothing"):
        build(num_attractor_layers=0)(tokens(), depth=0)
    with pytest.raises(ConfigError, match="cache"):
        model(tokens(), use_cache=True)
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        AttractorConfig(**SMALL, injection="meen")
    with pytest.raises(ConfigError, match="exceeds num_hidden_layers"):
        AttractorConfig(**SMALL, num_attractor_layers=5)
    for gates in ({"gate_limit": float("inf")}, {"gate_start": float("nan")}, {"gate_start": 1.5}):
        with pytest.raises(ConfigError, match="gate_"):
            AttractorConfig(**SMALL, **gates)
    with pytest.raises(ConfigError, match="must divide"):
        AttractorConfig(**{**SMALL, "num_key_value_heads": 3})


def test_in_bf16_a_solve_converges_to_what_bf16_can_reach() -> None:
    """Every token, with far fewer evaluations than the limit, and closer to the equilibrium than one evaluation is."""
    model = build(num_attractor_layers=2, gate_start=0.5, tolerance=1e-5)
    with torch.no_grad():
        exact, once = model(tokens()).logits, model(tokens(), depth=1).logits
        model.bfloat16()
        output = model(tokens())
    assert output.solution.outcome.converged
    assert output.solution.evaluations.float().mean() < 16
    assert (output.logits - exact).norm() < 0.5 * (once - exact).norm()
    assert model.budget() == {"tolerance": 2 * torch.finfo(torch.bfloat16).eps, "max_evaluations": 64}
    with pytest.raises(ConfigError, match="below the precision of bfloat16"):
        model.generate(tokens(), tolerance=1e-3)


def test_autocast_keeps_the_state_and_runs_every_use() -> None:
    """Forward at every budget, training, and generation with a cache; logits are near those without it."""
    model = build()
    for budget in ({}, {"depth": 0}, {"depth": 1}, {"tolerance": 1e-2}):
        with torch.no_grad():
            plain = model(tokens(), **budget)
            with torch.autocast("cpu", torch.bfloat16):
                cast = model(tokens(), **budget)
        assert cast.hidden.dtype == torch.float32
        assert (cast.logits.float() - plain.logits).norm() < 0.05 * plain.logits.norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.generate(tokens(), max_new_tokens=4, do_sample=False).shape == (2, 28)
        model.train()(tokens(), labels=tokens()).loss.backward()
