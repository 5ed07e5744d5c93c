"""Between proposal and equilibrium: figures agree with those of the judges, with the model's own map, and with each other."""

import random

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from attractor.data.text import train_tokenizer
from attractor.errors import ConfigError, DataError
from attractor.evaluation.internalisation import measure_internalisation, passage, pieces, trajectories
from attractor.evaluation.text import encode, score_text
from attractor.models.language import AttractorConfig, AttractorForCausalLM, LoopedConfig, LoopedForCausalLM

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
DOCUMENTS = ["the cat sat on the mat, naïve as ever 🙂 " * 3, "the dog 犬 sat down " * 2, "ten hens in the den"]
DEPTHS = (0, 1, 3)


@pytest.fixture(scope="module")
def tokenizer():
    rng = random.Random(0)
    words = ["the", "cat", "sat", "mat", "dog", "den", "hen", "ten", "down", "ever", "yes", "not", "on", "in", "a"]
    return train_tokenizer([" ".join(rng.choices(words, k=400)) for _ in range(4)], 290)


def randomised(model: nn.Module) -> nn.Module:
    """With branches that do something, which at initialisation they do not."""
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.15)
    return model.eval()


@pytest.fixture(scope="module")
def attractor():
    return randomised(AttractorForCausalLM(AttractorConfig(**SIZES, gate_start=0.3, tolerance=1e-4)))


@pytest.fixture(scope="module")
def looped():
    return randomised(LoopedForCausalLM(LoopedConfig(**SIZES, num_core_layers=1, num_coda_layers=0, mean_recurrence=3)))


@pytest.fixture(scope="module")
def found(attractor, tokenizer):
    return measure_internalisation(attractor, tokenizer, DOCUMENTS, depths=DEPTHS, length=24)


def test_figures_are_those_of_the_judge_of_text(found, attractor, tokenizer) -> None:
    """Bits per byte and evaluations at every depth and at rest; at rest also the residual and what is final."""
    for point in found.points:
        budget = {"tolerance": 1e-4} if point.depth is None else {"depth": point.depth}
        score = score_text(attractor, tokenizer, DOCUMENTS, length=24, **budget)
        assert point.bits_per_byte == pytest.approx(score.bits_per_byte, rel=1e-5)
        assert point.evaluations == pytest.approx(score.evaluations, abs=0.05)  # batches may round to another call
    assert (found.num_documents, found.num_tokens, found.num_bytes) == (3, score.num_tokens, score.num_bytes)
    assert found.rest.residual == pytest.approx(score.residual, rel=0.05)
    assert found.final == score.final == 1
    assert len({round(point.bits_per_byte, 6) for point in found.points[:3]}) == 3


def test_the_residual_belongs_to_the_state_that_is_decoded(found, attractor, tokenizer) -> None:
    """By calling the model's own map at the output of every depth."""
    windows = [encode(tokenizer, DOCUMENTS[2])[None]]
    one = measure_internalisation(attractor, tokenizer, DOCUMENTS[2:], depths=DEPTHS, length=64)
    with torch.no_grad():
        for point in one.points[:-1]:
            output = attractor(windows[0], depth=point.depth)
            y = output.solution.value
            f = attractor.update(output.proposal, attractor.make_context(y))(y)
            expected = ((f - y).norm(dim=-1) / y.norm(dim=-1))[:, :-1].mean()
            assert point.residual == pytest.approx(float(expected), rel=1e-3)
    sizes = [point.residual for point in found.points[:-1]]
    assert sizes == sorted(sizes, reverse=True)


def test_divergence_is_zero_at_rest_and_falls_towards_it(found) -> None:
    """And with it the other answers; costs rise with depth."""
    divergences = [point.divergence for point in found.points]
    assert divergences[-1] == 0
    assert divergences[0] > divergences[1] > divergences[2] > 0
    assert found.rest.agreement == 1
    assert 0 <= found.points[0].agreement < 1
    costs = [point.flops_per_token for point in found.points[:-1]]
    assert costs == sorted(costs)
    assert costs[1] - costs[0] == pytest.approx((costs[2] - costs[0]) / 3)


def test_tokens_are_reported_one_by_one(found, attractor, tokenizer) -> None:
    """In order, as many as were scored, below tolerance, with the distance that the model's own states have."""
    assert sum(len(t.evaluations) for t in found.tokens) == found.num_tokens
    assert [len(t.residual) for t in found.tokens] == [len(encode(tokenizer, text)) - 1 for text in DOCUMENTS]
    assert max(float(t.residual.max()) for t in found.tokens) < 1e-4
    ids = encode(tokenizer, DOCUMENTS[2])[None]  # in one window
    with torch.no_grad():
        output = attractor(ids)
    moved = (output.hidden - output.proposal).norm(dim=-1) / output.proposal.norm(dim=-1)
    torch.testing.assert_close(found.tokens[2].distance, moved[0, :-1])
    assert torch.equal(found.tokens[2].evaluations, output.solution.evaluations[0, :-1])


def test_gate_and_spectral_radius_are_the_models_own(found, attractor) -> None:
    """The gate at its start, and a map that contracts."""
    assert found.gate == pytest.approx(0.3, abs=1e-3)
    assert 0 < found.spectral_radius < 1


def test_trajectories_end_at_rest(attractor, tokenizer) -> None:
    """From the proposal's residual to one below the tolerance; moves end at zero; shares of variance are shares."""
    windows = [encode(tokenizer, text)[:24] for text in DOCUMENTS]
    paths = trajectories(attractor, windows, depth=10, num=5)
    assert paths.residual.shape == (11, sum(map(len, windows)))
    assert paths.paths.shape == paths.moves.shape == (11, 5, 2)
    assert float(paths.residual[-1].max()) < 1e-4 < float(paths.residual[0].min())
    assert torch.count_nonzero(paths.moves[-1]) == 0
    assert torch.count_nonzero(paths.moves[0]) == 10
    assert 0 < sum(paths.explained) <= 1 + 1e-9
    with torch.no_grad():
        proposals = torch.cat([attractor(ids[None]).proposal[0] for ids in windows])
        ends = torch.cat([attractor(ids[None], depth=10).solution.value[0] for ids in windows])
    chosen = torch.randperm(len(ends), generator=torch.Generator().manual_seed(0))[:5]
    # Two components hold at most the whole way.
    assert ((paths.paths[0] - paths.paths[-1]).norm(dim=1) <= (proposals - ends)[chosen].norm(dim=1) + 1e-4).all()


def test_a_model_that_does_nothing_yet_is_no_special_case(tokenizer) -> None:
    """At initialisation every update rests at once: no way, no divergence."""
    torch.manual_seed(0)
    model = AttractorForCausalLM(AttractorConfig(**SIZES)).eval()
    found = measure_internalisation(model, tokenizer, DOCUMENTS[2:], depths=(0,), length=24)
    assert found.distance == 0
    assert found.points[0].divergence == 0
    paths = trajectories(model, [encode(tokenizer, DOCUMENTS[2])], depth=2)
    assert torch.count_nonzero(paths.moves) == 0


def test_states_that_are_not_finite_are_named(tokenizer) -> None:
    """There is nothing to follow."""
    model = AttractorForCausalLM(AttractorConfig(**SIZES)).eval()
    nn.init.constant_(model.model.layers[-1].mlp.down_proj.weight, torch.nan)
    with pytest.raises(DataError, match="finite"):
        trajectories(model, [encode(tokenizer, DOCUMENTS[2])], depth=2)


def test_a_looped_model_is_compared_with_its_own_number_of_iterations(looped, tokenizer) -> None:
    """At that depth all is equal; there is no tolerance, no proposal to be far from, no gate."""
    found = measure_internalisation(looped, tokenizer, DOCUMENTS, depths=(0, 1, 3), length=24)
    first, second, third, rest = found.points
    assert (third.divergence, third.agreement, third.bits_per_byte) == (0, 1, pytest.approx(rest.bits_per_byte))
    assert rest.evaluations == 3
    assert third.residual == rest.residual
    assert first.divergence > second.divergence > 0
    assert (found.tolerance, found.final, found.distance, found.gate, found.spectral_radius) == (None,) * 5
    assert trajectories(looped, [encode(tokenizer, DOCUMENTS[2])], depth=3).residual.isfinite()[1:].all()
    with pytest.raises(ConfigError, match="leave out the tolerance"):
        measure_internalisation(looped, tokenizer, DOCUMENTS, depths=(0,), length=24, tolerance=1e-3)


def test_a_deep_equilibrium_model_has_no_proposal_to_be_far_from(tokenizer) -> None:
    """It starts from zero."""
    config = AttractorConfig(**SIZES, num_attractor_layers=2, start="zero", gate_start=0.3)
    found = measure_internalisation(
        randomised(AttractorForCausalLM(config)), tokenizer, DOCUMENTS[2:], depths=(0, 1), length=24
    )
    assert found.distance is None
    assert found.points[0].divergence > 0


def test_pieces_are_the_text(tokenizer) -> None:
    """One a token, characters of several tokens included."""
    for text in (*DOCUMENTS, "  two  spaces\n\n<|endoftext|> & <script>"):
        parts = pieces(tokenizer, text)
        assert "".join(parts) == text
        assert len(parts) == len(encode(tokenizer, text)) - 1


def test_a_passage_begins_with_a_line() -> None:
    """Is short, the same for the same seed, and all of a short text."""
    text = "\n".join(f"line {i} of many" for i in range(200))
    cut = passage(text, 100, random.Random(3))
    assert cut == passage(text, 100, random.Random(3))
    assert len({passage(text, 100, random.Random(seed)) for seed in range(5)}) > 1
    assert cut.startswith("line")
    assert len(cut) <= 100
    assert passage("short", 100, random.Random(0)) == "short"
    assert len(passage("x" * 1000, 100, random.Random(0))) == 100


def test_progress_ends_at_all_windows(attractor, tokenizer) -> None:
    """One more each time."""
    seen = []
    measure_internalisation(attractor, tokenizer, DOCUMENTS, depths=(0,), length=24, advance=lambda *n: seen.append(n))
    assert seen == [(i, len(seen)) for i in range(1, len(seen) + 1)]


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"depths": ()}, ConfigError, "at least one"),
        ({"depths": (-1,)}, ConfigError, "from 0 up"),
        ({"length": 65}, ConfigError, "2 to 64"),
        ({"length": 1}, ConfigError, "2 to 64"),
        ({"documents": []}, DataError, "no text"),
        ({"tolerance": -1.0}, ConfigError, "positive"),
        ({"model": "plain"}, ConfigError, "solves nothing"),
        ({"model": "stock"}, ConfigError, "Qwen3ForCausalLM solves nothing"),
    ],
)
def test_what_cannot_be_looked_into_is_refused(changes, error, says, attractor, tokenizer) -> None:
    """In one sentence."""
    models = {
        "plain": AttractorForCausalLM(AttractorConfig(**SIZES, num_attractor_layers=0)),
        "stock": Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    }
    settings = {"model": attractor, "documents": DOCUMENTS, "depths": (0,), "length": 24} | changes
    model, documents = models.get(settings.pop("model"), attractor), settings.pop("documents")
    with pytest.raises(error, match=says) as caught:
        measure_internalisation(model, tokenizer, documents, **settings)
    assert "\n" not in str(caught.value)
