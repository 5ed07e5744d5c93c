"""The cache gives the results of reading everything again, and a solve computes active tokens only."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from attractor import Anderson, Status, Steps, Tolerance, fixed_point
from attractor.errors import ConfigError, DataError
from attractor.models.language import (
    AttractorConfig,
    AttractorForCausalLM,
    LanguageModel,
    LoopedConfig,
    LoopedForCausalLM,
)
from attractor.models.language.inference.sparse_update import RaggedIndex

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "gate_start": 0.4,
    "gate_limit": 0.5,
    "max_evaluations": 100,
    "tie_word_embeddings": False,  # random tied embeddings soon repeat one token
    "pad_token_id": 0,
    "eos_token_id": 1,
}
SOLVED = {"tolerance": 1e-6}


def build(model_class: type = AttractorForCausalLM, config_class: type = AttractorConfig, **changes) -> LanguageModel:
    """A small model in evaluation mode; every weight changes the output, and the update contracts."""
    torch.manual_seed(0)
    model = model_class(config_class(**{**SMALL, **changes}))
    for name, p in model.named_parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.15)
        elif "norm" in name:
            torch.nn.init.uniform_(p, 0.5, 1.5)
    return model.eval()


CASES = {
    "solved": (lambda: build(), SOLVED),
    "solved, two layers": (lambda: build(num_attractor_layers=2), SOLVED),
    "solved, sum": (lambda: build(injection="sum"), SOLVED),
    "solved from zero": (
        lambda: build(num_attractor_layers=2, num_hidden_layers=2, start="zero", gate_start=0.05, gate_limit=0.1),
        SOLVED,
    ),
    "depth 0": (lambda: build(), {"depth": 0}),
    "depth 1": (lambda: build(), {"depth": 1}),
    "depth 3, two layers": (lambda: build(num_attractor_layers=2), {"depth": 3}),
    "out of evaluations": (lambda: build(gate_limit=2.0, gate_start=1.9), {"tolerance": 1e-9, "max_evaluations": 7}),
    "plain": (lambda: build(num_attractor_layers=0), {}),
    "looped": (lambda: build(LoopedForCausalLM, LoopedConfig, num_core_layers=2, mean_recurrence=4), {}),
}
EXACT = [name for name in CASES if name != "out of evaluations"]  # an unconverged result depends on the path
cases = pytest.mark.parametrize("case", EXACT)


def tokens(batch: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, SMALL["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


def left_padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = tokens(3, 12), torch.ones(3, 12, dtype=torch.long)
    for row, num in enumerate((0, 3, 7)):
        ids[row, :num], mask[row, :num] = 0, 0
    return ids, mask


@torch.no_grad()
def pieces(model: LanguageModel, ids: torch.Tensor, cuts: list[int], cache=None, **budget) -> torch.Tensor:
    """Logits of a text that is read in several calls."""
    cache, logits = cache or DynamicCache(), []
    for part in ids.tensor_split(cuts, dim=1):
        output = model(part, cache=cache, **budget)
        assert output.cache is cache
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


@cases
def test_reading_in_pieces_gives_the_logits_of_reading_at_once(case: str) -> None:
    """To 1e-5 in float32, for several ways to cut."""
    make, budget = CASES[case]
    model, ids = make(), tokens()
    with torch.no_grad():
        expected = model(ids, **budget).logits
    assert (pieces(model, ids, [5, 6, 16, 17, 18], **budget) - expected).abs().max() < 1e-5
    assert (pieces(model, ids, list(range(1, 24)), **budget) - expected).abs().max() < 1e-5
    if case not in ("depth 3, two layers", "looped"):  # these need a slot for every evaluation
        static = StaticCache(config=model.config, max_cache_len=40)
        assert (pieces(model, ids, [10, 11, 12], static, **budget) - expected).abs().max() < 1e-5


@cases
def test_generated_text_is_the_same_with_and_without_a_cache(case: str) -> None:
    """Greedy, with left-padded rows, chunked prefill, beams, and a static cache."""
    make, budget = CASES[case]
    model = make()
    ids, mask = left_padded()
    settings = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False, **budget}
    slow = model.generate(ids, use_cache=False, **settings)
    assert torch.equal(model.generate(ids, **settings), slow)
    assert torch.equal(model.generate(ids, prefill_chunk_size=5, **settings), slow)
    alone = model.generate(ids[2:, 7:], max_new_tokens=16, do_sample=False, **budget)
    length = min(alone.shape[1], slow.shape[1] - 7)
    assert torch.equal(alone[:, :length], slow[2:, 7 : 7 + length])
    beams = settings | {"num_beams": 3}
    assert torch.equal(model.generate(ids, **beams), model.generate(ids, use_cache=False, **beams))
    if case not in ("depth 3, two layers", "looped"):
        assert torch.equal(model.generate(ids, cache_implementation="static", **settings), slow)


def test_many_prompts_give_the_same_greedy_text_with_and_without_a_cache() -> None:
    """200 prompts of different lengths, 64 tokens each, at a tight tolerance."""
    model = build()
    model.generation_config.eos_token_id = None
    ids, mask = tokens(200, 12, seed=1), torch.ones(200, 12, dtype=torch.long)
    for row in range(200):
        ids[row, : row % 10], mask[row, : row % 10] = 0, 0
    settings = {"attention_mask": mask, "max_new_tokens": 64, "do_sample": False, "pad_token_id": 0, **SOLVED}
    cached = model.generate(ids, **settings)
    assert cached.shape == (200, 76)
    # One pass over each complete text gives every choice of generation without a cache.
    with torch.no_grad():
        seen_all = torch.cat(
            [torch.ones(200, 12, dtype=torch.long) * mask, torch.ones(200, 64, dtype=torch.long)], dim=1
        )
        choices = torch.cat(
            [
                model(part, attention_mask=seen, **SOLVED).logits[:, 11:-1].argmax(-1)
                for part, seen in zip(cached.split(50), seen_all.split(50), strict=True)
            ]
        )
    assert torch.equal(choices, cached[:, 12:])


@pytest.mark.parametrize("num_layers", [1, 2])
def test_converged_tokens_are_not_computed_again(num_layers: int) -> None:
    """The sparse solve equals the dense one, and computes exactly the tokens that it counts."""
    model = build(num_attractor_layers=num_layers)
    ids = tokens(4, 48)
    ids[1, 30:] = 5  # rows of different difficulty
    computed = []
    for layer in model.model.layers[-1:]:
        layer.register_forward_hook(lambda module, inputs, out: computed.append(out.shape[:2].numel()))
    with torch.no_grad():
        output = model(ids, tolerance=1e-5)
        context = model.model.make_context(output.hidden)
        spent, computed[:] = sum(computed), []
        dense = fixed_point(
            model.model.update(output.proposal, context),
            output.proposal,
            solver=Anderson(window=model.config.window),
            stop=Tolerance(rtol=1e-5, max_evaluations=100),
            causal=True,
        )
    solution = output.solution
    assert solution.outcome.converged
    assert dense.outcome.converged
    if num_layers == 1:  # then keys and values of a frozen token are exactly those of a dense solve
        assert torch.equal(solution.value, dense.value)
        assert torch.equal(solution.evaluations, dense.evaluations)
    else:
        assert ((solution.value - dense.value).norm(dim=-1) / dense.value.norm(dim=-1)).max() < 1e-4
    assert solution.evaluations.sum() <= spent < solution.evaluations.sum() + 16 * solution.outcome.calls
    assert spent < 0.9 * sum(computed)


@pytest.mark.parametrize("injection", ["mean", "sum"])
def test_one_evaluation_equals_one_step_of_the_solver(injection: str) -> None:
    """Depth 1 does not use the solver; value, residual and evaluations are those of the solver's first step."""
    model, ids = build(injection=injection), tokens()
    with torch.no_grad():
        output = model(ids, depth=1)
        update = model.model.update(output.proposal, model.model.make_context(output.hidden))
        stepped = fixed_point(update, output.proposal, solver=Anderson(), stop=Steps(1), causal=True)
    assert (output.solution.value - stepped.value).abs().max() < 1e-6
    assert (output.solution.residual - stepped.residual).abs().max() < 1e-6
    assert torch.equal(output.solution.evaluations, stepped.evaluations)


def test_rows_that_need_different_numbers_of_evaluations_have_the_values_of_each_row_alone() -> None:
    """With padding."""
    model = build()
    ids, mask = left_padded()
    with torch.no_grad():
        batched = model(ids, attention_mask=mask, tolerance=1e-6).logits
        for row, num in enumerate((0, 3, 7)):
            alone = model(ids[row : row + 1, num:], tolerance=1e-6).logits
            assert (batched[row, num:] - alone[0]).abs().max() < 1e-5


@pytest.mark.parametrize("max_evaluations", [7, 9])  # after nine, one token's last step is rejected
def test_stored_keys_are_those_of_the_returned_values(max_evaluations: int) -> None:
    """Also where the evaluation limit ended the solve."""
    make, budget = CASES["out of evaluations"]
    budget = budget | {"max_evaluations": max_evaluations}
    model, ids, cache = make(), tokens(), DynamicCache()
    with torch.no_grad():
        output = model(ids, cache=cache, **budget)
        assert (output.solution.outcome.status != Status.CONVERGED).any()
        layer, at = model.model.layers[3], (output.hidden + output.proposal) / 2
        context = model.model.make_context(at)
        computed = cache.layers[3].keys.clone()
        layer.self_attn(layer.input_layernorm(at), context.rotary, lambda q, k, v: (computed.copy_(k), q)[1])
    assert (computed - cache.layers[3].keys).abs().max() < 1e-5


@torch.no_grad()
def test_three_layers_solve_a_row_alone_as_among_others_and_before_more_tokens() -> None:
    """Keys of the upper layers of converged tokens are as old as their last evaluation, however many tokens are active."""
    model = build(num_attractor_layers=3, num_hidden_layers=6)
    ids = torch.randint(2, 97, (8, 40), generator=torch.Generator().manual_seed(0))
    whole = model(ids, tolerance=1e-2).logits
    for row in range(8):
        assert torch.allclose(model(ids[row : row + 1], tolerance=1e-2).logits[0], whole[row], atol=1e-5)
    assert torch.allclose(model(ids[:, :32], tolerance=1e-2).logits, whole[:, :32], atol=1e-5)


def test_later_tokens_of_a_call_do_not_change_earlier_logits() -> None:
    """Bitwise, with a cache."""
    model, a, b = build(), tokens(), tokens()
    b[:, 18:] = tokens(seed=1)[:, 18:]
    for budget in ({"tolerance": 1e-2}, {"tolerance": 1e-6}, {"depth": 2}):
        before, after = (pieces(model, ids, [8], **budget) for ids in (a, b))
        assert torch.equal(before[:, :18], after[:, :18])
        assert not torch.equal(before[:, 18:], after[:, 18:])


def test_caches_that_do_not_fit_are_refused_in_one_sentence() -> None:
    """Caches of another model, batch, depth or kind, and texts beyond the last position."""
    model, ids = build(), tokens()
    with torch.no_grad():
        cache = model(ids, use_cache=True).cache
        with pytest.raises(ConfigError, match="another model or batch"):
            model(ids[:1], cache=cache)
        with pytest.raises(ConfigError, match="another model or batch"):
            build(num_key_value_heads=4)(ids, cache=cache)
        with pytest.raises(ConfigError, match="another depth"):
            model(ids, cache=cache, depth=2)
        with pytest.raises(ConfigError, match=r"StaticCache of 4 slots cannot hold the 6"):
            model(ids, cache=StaticCache(config=model.config, max_cache_len=40), depth=3)
        offloaded = DynamicCache(config=model.config)
        offloaded.offloading = True  # the constructor makes a stream, which a CUDA build without a GPU cannot
        with pytest.raises(ConfigError, match=r"kept in a DynamicCache or StaticCache"):
            model(ids, cache=offloaded)
        with pytest.raises(DataError, match=r"attention_mask of shape \(2, 24\)"):
            model(ids, cache=cache, attention_mask=torch.ones_like(ids))
        assert cache.get_seq_length() == 24
        with pytest.raises(DataError, match="more than the 96"):
            model(tokens(2, 80), cache=cache)
        assert cache.get_seq_length() == 24
    with pytest.raises(ConfigError, match="no_grad"):
        model(ids, use_cache=True)


def test_generation_refuses_to_exceed_the_context() -> None:
    """It does not drop tokens silently."""
    model = build()
    with pytest.raises(DataError, match="more than the 96"):
        model.generate(tokens(1, 90), max_new_tokens=20, min_new_tokens=20)


def test_a_stored_budget_is_used_if_none_is_given(tmp_path) -> None:
    """By every call, also after saving and loading."""
    model = build()
    model.config.budget = {"depth": 0}
    model.save_pretrained(tmp_path)
    loaded = AttractorForCausalLM.from_pretrained(tmp_path).eval()
    settings = {"max_new_tokens": 20, "do_sample": False}
    assert torch.equal(loaded.generate(tokens(), **settings), model.generate(tokens(), depth=0, **settings))
    solved = model.generate(tokens(), tolerance=1e-5, **settings)
    assert torch.equal(loaded.generate(tokens(), tolerance=1e-5, **settings), solved)
    assert not torch.equal(loaded.generate(tokens(), **settings), solved)
    with torch.no_grad():
        assert torch.equal(loaded(tokens()).logits, model(tokens(), depth=0).logits)
        assert loaded(tokens(), max_evaluations=3).solution.outcome.checked


def test_padding_inside_a_prompt_is_ignored_with_and_without_a_cache() -> None:
    """``generate`` infers it from the padding id."""
    model, ids = build(), tokens(2, 12)
    ids[0, 5:8] = 0
    settings = {"max_new_tokens": 8, "do_sample": False, **SOLVED}
    assert torch.equal(model.generate(ids, **settings), model.generate(ids, use_cache=False, **settings))


def test_inference_mode_solves_and_fills_a_cache() -> None:
    """As ``no_grad`` does."""
    model, ids = build(), tokens()
    with torch.inference_mode():
        inside = model(ids, use_cache=True).logits
    with torch.no_grad():
        assert torch.equal(model(ids).logits, inside)


def test_what_a_cache_cannot_hold_is_refused_before_it_is_written() -> None:
    """Equilibrium after a fixed depth, packed documents, a full static cache, another dtype, a looped solve."""
    model, ids = build(), tokens()
    looped = build(LoopedForCausalLM, LoopedConfig, num_core_layers=2, mean_recurrence=4)
    deq = build(num_hidden_layers=2, num_attractor_layers=2, start="zero")
    static = StaticCache(config=model.config, max_cache_len=30)
    packed = torch.arange(12).repeat(2)[None].expand(2, -1)
    with torch.no_grad():
        once = model(ids, use_cache=True, depth=1).cache
        model(ids, cache=static)
        refused = [
            (lambda: model(ids, cache=once), "of a fixed depth, not of the equilibrium"),
            (lambda: model(ids, position_ids=packed, use_cache=True), "packed documents"),
            (lambda: model(ids[:, :10], cache=static), "no room for 10 tokens after 24"),
            (lambda: build().bfloat16()(ids, cache=once, depth=1), "start a new one"),
            (lambda: looped(ids, use_cache=True, tolerance=0.1), "fixed number of iterations"),
            (lambda: model(ids, cache=()), "not a tuple"),
            (lambda: deq(ids, use_cache=True, depth=0), "uses no layer"),
        ]
        for attempt, message in refused:
            with pytest.raises(ConfigError, match=message):
                attempt()
    assert once.get_seq_length() == 24
    assert static.get_seq_length() == 24


def test_a_cache_of_the_caller_remembers_what_it_holds() -> None:
    """An equilibrium and a fixed depth do not mix in it; once empty again, it can hold the other."""
    model, ids = build(), tokens()
    for cache in (DynamicCache(), StaticCache(config=model.config, max_cache_len=40)):
        with torch.no_grad():
            model(ids, cache=cache)
            with pytest.raises(ConfigError, match="of the equilibrium, not of a fixed depth"):
                model(ids, cache=cache, depth=1)
            cache.reset()
            first = model(ids, cache=cache, depth=1).logits
            assert (first - model(ids, depth=1).logits).abs().max() < 1e-5
            with pytest.raises(ConfigError, match="of a fixed depth, not of the equilibrium"):
                model(ids, cache=cache)


def test_packing_tokens_by_row_and_back_is_exact() -> None:
    """Rows without tokens are left out; the packed width is a multiple of the tile."""
    index, x = torch.tensor([1, 2, 7, 21, 22, 23, 24, 25]), torch.randn(8, 3)  # of four rows of seven
    ragged = RaggedIndex(index, 7, 4)
    packed = ragged.pack(x)
    assert ragged.used_rows.tolist() == [0, 1, 3]
    assert packed.shape == (3, 8, 3)
    assert torch.equal(packed[2, :5], x[3:])
    assert not packed[0, 2:].any()
    assert torch.equal(ragged.unpack(packed), x)
