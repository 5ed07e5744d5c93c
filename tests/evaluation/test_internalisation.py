"""Internalisation: the numbers agree with ``score_text``, with the model's own update, and with each other."""

import random
from dataclasses import replace

import pytest
import torch
from tests.small_models import SIZES as ALL_SIZES
from tests.small_models import randomised
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from attractor.errors import ConfigError, DataError
from attractor.evaluation.internalisation import measure_internalisation, run_window
from attractor.evaluation.text import encode, passage, score_text, token_texts
from attractor.evaluation.trajectories import trajectories
from attractor.models.language import AttractorConfig, AttractorForCausalLM, LoopedConfig, LoopedForCausalLM

SIZES = {**ALL_SIZES, "max_position_embeddings": 64}
DOCUMENTS = ["the cat sat on the mat, naïve as ever 🙂 " * 3, "the dog 犬 sat down " * 2, "ten hens in the den"]
DEPTHS = (0, 1, 3)


@pytest.fixture(scope="module")
def attractor():
    return randomised(AttractorForCausalLM(AttractorConfig(**SIZES, gate_start=0.3, tolerance=1e-4)))


@pytest.fixture(scope="module")
def looped():
    return randomised(LoopedForCausalLM(LoopedConfig(**SIZES, num_core_layers=1, num_coda_layers=0, mean_recurrence=3)))


@pytest.fixture(scope="module")
def found(attractor, tokenizer):
    return measure_internalisation(attractor, tokenizer, DOCUMENTS, depths=DEPTHS, length=24)


def test_numbers_agree_with_score_text(found, attractor, tokenizer) -> None:
    """Bits per byte and evaluations at all depths; at the equilibrium also the residual and the converged fraction."""
    for point in found.points:
        budget = {"tolerance": 1e-4} if point.depth is None else {"depth": point.depth}
        score = score_text(attractor, tokenizer, DOCUMENTS, length=24, **budget)
        assert point.bits_per_byte == pytest.approx(score.bits_per_byte, rel=1e-5)
        assert point.evaluations == pytest.approx(
            score.evaluations, abs=0.05
        )  # rounding in batches may change the count by one
    assert (found.num_documents, found.num_tokens, found.num_bytes) == (3, score.num_tokens, score.num_bytes)
    assert found.equilibrium.residual == pytest.approx(score.residual, rel=0.05)
    assert found.converged_fraction == score.converged_fraction == 1
    assert len({round(point.bits_per_byte, 6) for point in found.points[:3]}) == 3


def test_the_share_below_the_tolerance_is_not_only_the_verified_part(tokenizer) -> None:
    """A token below it counts although an earlier one has not stopped; the page and ``score_text`` say the same share."""
    model = randomised(
        AttractorForCausalLM(AttractorConfig(**SIZES, gate_start=0.3, tolerance=1e-3, max_evaluations=5))
    )
    one = measure_internalisation(model, tokenizer, DOCUMENTS, depths=(1,), length=24)
    residuals = torch.cat([t.residual for t in one.tokens])
    assert one.converged_fraction == pytest.approx(float((residuals < 1e-3).float().mean()))
    assert 0 <= one.verified_fraction < one.converged_fraction < 1
    score = score_text(model, tokenizer, DOCUMENTS, length=24)
    assert score.converged_fraction == pytest.approx(one.converged_fraction, abs=0.05)


def test_the_summary_names_the_depth_with_the_lowest_loss(found) -> None:
    """Be it the equilibrium or not."""
    best = replace(found.points[1], bits_per_byte=found.equilibrium.bits_per_byte / 2)
    changed = replace(found, points=(found.points[0], best, *found.points[2:]))
    assert changed.summary().startswith("Depth 1 has the lowest loss")
    assert "(+100.00%)" in changed.summary()
    solved = replace(found.equilibrium, bits_per_byte=1.0)
    assert (
        "The equilibrium has the lowest loss, 1.0000" in replace(found, points=(*found.points[:-1], solved)).summary()
    )


def test_the_residual_is_that_of_the_decoded_state(found, attractor, tokenizer) -> None:
    """Recomputed with the model's update at the output of every depth."""
    windows = [encode(tokenizer, DOCUMENTS[2])[None]]
    one = measure_internalisation(attractor, tokenizer, DOCUMENTS[2:], depths=DEPTHS, length=64)
    with torch.no_grad():
        for point in one.points[:-1]:
            output = attractor(windows[0], depth=point.depth)
            y = output.solution.value
            f = attractor.model.update(output.proposal, attractor.model.make_context(y))(y)
            expected = ((f - y).norm(dim=-1) / y.norm(dim=-1))[:, :-1].mean()
            assert point.residual == pytest.approx(float(expected), rel=1e-3)
    sizes = [point.residual for point in found.points[:-1]]
    assert sizes == sorted(sizes, reverse=True)


def test_runs_from_a_random_start_follow_one_trajectory(tokenizer) -> None:
    """The residual that a run of d + 1 evaluations reports is that of the state after d. Other random numbers stay."""
    config = AttractorConfig(**SIZES, num_attractor_layers=2, start="gaussian", gate_start=0.3)
    model, ids = randomised(AttractorForCausalLM(config)).eval(), encode(tokenizer, DOCUMENTS[2])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.no_grad():
        two, three = (run_window(model, ids, {"depth": depth}) for depth in (2, 3))
        y = two.solution.value
        f = model.update_of(two, torch.arange(len(ids))[None])(y)
    assert torch.allclose(three.solution.residual, (f - y).norm(dim=-1) / y.norm(dim=-1), rtol=1e-3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_kl_divergence_decreases_to_zero_at_the_equilibrium(found) -> None:
    """Agreement is 1 there, and costs rise linearly with depth."""
    divergences = [point.kl_divergence for point in found.points]
    assert divergences[-1] == 0
    assert divergences[0] > divergences[1] > divergences[2] > 0
    assert found.equilibrium.top1_agreement == 1
    assert 0 <= found.points[0].top1_agreement < 1
    costs = [point.flops_per_token for point in found.points[:-1]]
    assert costs == sorted(costs)
    assert costs[1] - costs[0] == pytest.approx((costs[2] - costs[0]) / 3)


def test_every_token_is_reported(found, attractor, tokenizer) -> None:
    """In order, all that were scored, below tolerance, with the distance between the model's own states."""
    assert sum(len(t.evaluations) for t in found.tokens) == found.num_tokens
    assert [len(t.residual) for t in found.tokens] == [len(encode(tokenizer, text)) - 1 for text in DOCUMENTS]
    assert max(float(t.residual.max()) for t in found.tokens) < 1e-4
    ids = encode(tokenizer, DOCUMENTS[2])[None]  # in one window
    with torch.no_grad():
        output = attractor(ids)
    expected = (output.hidden - output.proposal).norm(dim=-1) / output.proposal.norm(dim=-1)
    torch.testing.assert_close(found.tokens[2].proposal_distance, expected[0, :-1])
    assert torch.equal(found.tokens[2].evaluations, output.solution.evaluations[0, :-1])


def test_gate_and_spectral_radius_come_from_the_model(found, attractor) -> None:
    """The gate has its initial value, and the update is a contraction."""
    assert found.gate == pytest.approx(0.3, abs=1e-3)
    assert 0 < found.spectral_radius < 1


def test_trajectories_end_at_the_equilibrium(attractor, tokenizer) -> None:
    """The residual falls below the tolerance, offsets end at zero, and shares of variance are at most 1."""
    windows = [encode(tokenizer, text)[:24] for text in DOCUMENTS]
    paths = trajectories(attractor, windows, depth=10, num=5)
    assert paths.residual.shape == (11, sum(map(len, windows)))
    assert paths.paths.shape == paths.offsets.shape == (11, 5, 2)
    assert float(paths.residual[-1].max()) < 1e-4 < float(paths.residual[0].min())
    assert torch.count_nonzero(paths.offsets[-1]) == 0
    assert torch.count_nonzero(paths.offsets[0]) == 10
    assert 0 < sum(paths.explained) <= 1 + 1e-9
    with torch.no_grad():
        proposals = torch.cat([attractor(ids[None]).proposal[0] for ids in windows])
        ends = torch.cat([attractor(ids[None], depth=10).solution.value[0] for ids in windows])
    chosen = torch.randperm(len(ends), generator=torch.Generator().manual_seed(0))[:5]
    # A projection is never longer than the original vector.
    assert ((paths.paths[0] - paths.paths[-1]).norm(dim=1) <= (proposals - ends)[chosen].norm(dim=1) + 1e-4).all()


def test_an_untrained_model_is_no_special_case(tokenizer) -> None:
    """At initialisation the proposal is the equilibrium: distance and divergence are zero."""
    torch.manual_seed(0)
    model = AttractorForCausalLM(AttractorConfig(**SIZES)).eval()
    found = measure_internalisation(model, tokenizer, DOCUMENTS[2:], depths=(0,), length=24)
    assert found.proposal_distance == 0
    assert found.points[0].kl_divergence == 0
    paths = trajectories(model, [encode(tokenizer, DOCUMENTS[2])], depth=2)
    assert torch.count_nonzero(paths.offsets) == 0


def test_states_that_are_not_finite_are_refused(tokenizer) -> None:
    """The error says that there is nothing to follow."""
    model = AttractorForCausalLM(AttractorConfig(**SIZES)).eval()
    nn.init.constant_(model.model.layers[-1].mlp.down_proj.weight, torch.nan)
    with pytest.raises(DataError, match="finite"):
        trajectories(model, [encode(tokenizer, DOCUMENTS[2])], depth=2)


def test_a_looped_model_is_compared_at_its_own_number_of_iterations(looped, tokenizer) -> None:
    """At that depth the numbers are equal. There is no tolerance, proposal distance or gate."""
    found = measure_internalisation(looped, tokenizer, DOCUMENTS, depths=(0, 1, 3), length=24)
    first, second, third, equilibrium = found.points
    assert (third.kl_divergence, third.top1_agreement, third.bits_per_byte) == (
        0,
        1,
        pytest.approx(equilibrium.bits_per_byte),
    )
    assert equilibrium.evaluations == 3
    assert third.residual == equilibrium.residual
    assert first.kl_divergence > second.kl_divergence > 0
    assert (found.tolerance, found.converged_fraction, found.proposal_distance) == (None,) * 3
    assert (found.gate, found.spectral_radius) == (None,) * 2
    assert trajectories(looped, [encode(tokenizer, DOCUMENTS[2])], depth=3).residual.isfinite()[1:].all()
    with pytest.raises(ConfigError, match="leave out the tolerance"):
        measure_internalisation(looped, tokenizer, DOCUMENTS, depths=(0,), length=24, tolerance=1e-3)


def test_a_deep_equilibrium_model_has_no_proposal_distance(tokenizer) -> None:
    """It starts from zero."""
    config = AttractorConfig(**SIZES, num_attractor_layers=2, start="zero", gate_start=0.3)
    found = measure_internalisation(
        randomised(AttractorForCausalLM(config)), tokenizer, DOCUMENTS[2:], depths=(0, 1), length=24
    )
    assert found.proposal_distance is None
    assert found.points[0].kl_divergence > 0


def test_token_texts_join_to_the_text(tokenizer) -> None:
    """One part per token, also when a character spans several tokens."""
    for text in (*DOCUMENTS, "  two  spaces\n\n<|endoftext|> & <script>"):
        parts = token_texts(tokenizer, text)
        assert "".join(parts) == text
        assert len(parts) == len(encode(tokenizer, text)) - 1


def test_a_passage_begins_at_a_line() -> None:
    """It is short, reproducible by seed, and the complete text when that is short."""
    text = "\n".join(f"line {i} of many" for i in range(200))
    cut = passage(text, 100, random.Random(3))
    assert cut == passage(text, 100, random.Random(3))
    assert len({passage(text, 100, random.Random(seed)) for seed in range(5)}) > 1
    assert cut.startswith("line")
    assert len(cut) <= 100
    assert passage("short", 100, random.Random(0)) == "short"
    assert len(passage("x" * 1000, 100, random.Random(0))) == 100


def test_progress_ends_at_all_windows(attractor, tokenizer) -> None:
    """The number of finished windows grows by one."""
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
        ({"model": "plain"}, ConfigError, "has no solve"),
        ({"model": "stock"}, ConfigError, "Qwen3ForCausalLM has no solve"),
    ],
)
def test_invalid_arguments_are_refused(changes, error, says, attractor, tokenizer) -> None:
    """In one line that names the problem."""
    models = {
        "plain": AttractorForCausalLM(AttractorConfig(**SIZES, num_attractor_layers=0)),
        "stock": Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    }
    settings = {"model": attractor, "documents": DOCUMENTS, "depths": (0,), "length": 24} | changes
    model, documents = models.get(settings.pop("model"), attractor), settings.pop("documents")
    with pytest.raises(error, match=says) as caught:
        measure_internalisation(model, tokenizer, documents, **settings)
    assert "\n" not in str(caught.value)
