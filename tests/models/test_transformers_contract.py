"""Our models pass the checks that transformers runs on every model of its own (ModelTesterMixin, GenerationTesterMixin)."""

import copy
import inspect
import json

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig

from attractor.errors import ConfigError
from attractor.models.language import AttractorConfig, AttractorForCausalLM, LoopedConfig, LoopedForCausalLM

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "attractor": lambda **changes: AttractorConfig(**{**SIZES, "gate_start": 0.3, "tolerance": 1e-5, **changes}),
    "plain": lambda **changes: AttractorConfig(**{**SIZES, "num_attractor_layers": 0, **changes}),
    "looped": lambda **changes: LoopedConfig(**{**SIZES, "num_core_layers": 1, "mean_recurrence": 3, **changes}),
}
kinds = pytest.mark.parametrize("kind", CONFIGS)
GREEDY = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}


def build(kind: str, **changes):
    """A small model in evaluation mode whose every matrix changes the output."""
    torch.manual_seed(0)
    config = CONFIGS[kind](**changes)
    model = (LoopedForCausalLM if kind == "looped" else AttractorForCausalLM)(config)
    for p in model.parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=0.1)
    return model.eval()


def tokens(batch: int = 2, length: int = 10, seed: int = 0) -> Tensor:
    return torch.randint(3, 99, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model, ids: Tensor, **settings) -> Tensor:
    with torch.no_grad():
        return model(ids, **settings).logits


@kinds
def test_forward_has_the_stock_signature(kind: str) -> None:
    """The names that callers and libraries read from it, in the stock order."""
    names = list(inspect.signature(build(kind).forward).parameters)
    assert names[:5] == ["input_ids", "attention_mask", "position_ids", "cache", "inputs_embeds"]
    assert {"labels", "use_cache", "logits_to_keep"} <= set(names)
    assert build(kind).main_input_name == "input_ids"


@kinds
def test_tuples_hold_what_outputs_hold(kind: str) -> None:
    """Entry by entry, with labels, hidden states and caches; by argument and by configuration."""
    model, ids = build(kind), tokens()
    for settings in (
        {},
        {"labels": ids},
        {"output_hidden_states": True},
        {"labels": ids, "output_hidden_states": True},
    ):
        with torch.no_grad():
            whole, parts = model(ids, **settings), model(ids, return_dict=False, **settings)
        entries = [x for x in (whole.loss, whole.logits, whole.cache, whole.hidden_states) if x is not None]
        assert isinstance(parts, tuple)
        assert len(parts) == len(entries)
        for a, b in zip(parts, entries, strict=True):
            if isinstance(a, tuple):
                assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
            elif isinstance(a, Tensor):
                assert torch.equal(a, b)
    model.config.return_dict = False
    with torch.no_grad():
        assert isinstance(model(ids), tuple)


@kinds
def test_hidden_states_are_one_for_every_backbone_layer_then_the_equilibrium(kind: str) -> None:
    """The first is the embedding, the last before the equilibrium is the proposal; the head reads the last."""
    model, ids = build(kind), tokens()
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
    states, inner = output.hidden_states, model.model
    num = {"attractor": 3, "plain": 4, "looped": 2}[kind]
    assert len(states) == num + (1 if kind == "plain" else 2)
    assert torch.equal(states[0], model.get_input_embeddings()(ids))
    x, context = states[0], inner.make_context(states[0])
    for i in range(num):
        x = inner.run(x, context, i, i + 1)
        if kind != "plain" or i < num - 1:  # as in stock models, the last one has passed the norm
            assert torch.allclose(states[i + 1], x, atol=1e-6)
    if kind != "plain":
        assert torch.equal(states[-2], output.proposal)
    assert torch.equal(model.lm_head(states[-1]), output.logits)
    assert model(ids).hidden_states is None
    assert model(ids).cache is None, "a cache would keep the graph of the gradients"
    model.config.output_hidden_states = True
    assert len(model(ids).hidden_states) == len(states)


@kinds
def test_hidden_states_keep_gradients(kind: str) -> None:
    """In training, every one of them."""
    model = build(kind).train()
    output = model(tokens(), output_hidden_states=True)
    for state in output.hidden_states:
        state.retain_grad()
    output.logits.sum().backward()
    assert all(state.grad is not None for state in output.hidden_states)


@kinds
def test_attentions_are_refused_in_one_sentence(kind: str) -> None:
    """By argument, by configuration, and in generation."""
    model = build(kind)
    with pytest.raises(ConfigError, match="attentions are not returned"):
        model(tokens(), output_attentions=True)
    with pytest.raises(ConfigError, match="attentions are not returned"):
        model.generate(tokens(), output_attentions=True, return_dict_in_generate=True, **GREEDY)
    with pytest.raises(ValueError, match="attention"):
        model.config.output_attentions = True


@kinds
def test_a_cache_continues_a_text(kind: str) -> None:
    """In pieces of any length, for padded rows, under both names, and returned under both."""
    model, ids = build(kind), tokens(2, 12)
    expected = logits(model, ids)
    with torch.no_grad():
        first = model(ids[:, :5])
        assert first.past_key_values is first.cache
        assert first.cache.get_seq_length() == 5
        second = model(ids[:, 5:9], past_key_values=first.past_key_values, cache_position=torch.arange(5, 9))
        third = model(ids[:, 9:], cache=second.cache, use_cache=True)
        found = torch.cat([first.logits, second.logits, third.logits], 1)
        assert (found - expected).abs().max() < 1e-3
        mask = torch.ones(2, 12, dtype=torch.long)
        mask[0, :3] = 0
        whole = model(ids, attention_mask=mask).logits
        cache = DynamicCache()
        model(ids[:, :7], attention_mask=mask[:, :7], past_key_values=cache)
        rest = model(ids[:, 7:], attention_mask=mask, past_key_values=cache).logits
        assert (rest - whole[:, 7:]).abs().max() < 1e-3


@kinds
def test_some_positions_get_logits(kind: str) -> None:
    """The last ones, or those of a tensor."""
    model, ids = build(kind), tokens()
    every = logits(model, ids)
    assert torch.allclose(logits(model, ids, logits_to_keep=1), every[:, -1:], atol=1e-5)
    keep = torch.tensor([1, 4])
    assert torch.allclose(logits(model, ids, logits_to_keep=keep), every[:, keep], atol=1e-5)
    assert torch.allclose(
        logits(model, ids, logits_to_keep=torch.tensor([[1, 4], [0, 9]]))[1], every[1, [0, 9]], atol=1e-5
    )


@kinds
def test_embedded_tokens_replace_ids(kind: str) -> None:
    """In forward and in generation, with a cache."""
    model, ids = build(kind), tokens()
    x = model.get_input_embeddings()(ids)
    assert torch.equal(logits(model, None, inputs_embeds=x), logits(model, ids))
    new = model.generate(inputs_embeds=x, **GREEDY)
    assert torch.equal(new, model.generate(ids, **GREEDY)[:, ids.shape[1] :])


@kinds
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_gradient_checkpointing_is_switched_on_and_off(kind: str, reentrant: bool | None) -> None:
    """Gradients stay; adapters may ask for gradients of the embedded tokens."""
    grads = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = build(kind).train()
        if enabled:
            assert not model.is_activation_checkpointing
            model.activation_checkpointing_enable(*([{"use_reentrant": reentrant}] if reentrant is not None else []))
            assert model.is_activation_checkpointing
        torch.manual_seed(1)  # a looped model draws its iterations
        model(tokens(), labels=tokens()).loss.backward()
        grads.append([p.grad for p in model.parameters()])
        model.activation_checkpointing_disable()
        assert not model.is_activation_checkpointing
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))
    for p in model.parameters():
        p.requires_grad_(False)
    model.enable_input_require_grads()
    assert model(tokens()).logits.requires_grad


@kinds
@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_grows_and_shrinks(kind: str, tied: bool, tmp_path) -> None:
    """Old tokens keep their logits, new ones are read, trained, saved and loaded; the head stays tied."""
    model, ids = build(kind, tie_word_embeddings=tied), tokens()
    before = logits(model, ids)
    model.resize_token_embeddings(109)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 109
    assert model.get_output_embeddings().weight.shape[0] == 109
    assert torch.allclose(logits(model, ids)[..., :99], before, atol=1e-5)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    new = torch.full((1, 4), 108)
    model.train()(new, labels=new).loss.backward()
    model.eval().save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again, new), logits(model, new))
    model.resize_token_embeddings(97)
    assert logits(model, ids.clamp_max(96)).shape[-1] == 97
    model.resize_token_embeddings(100, pad_to_multiple_of=32)
    assert model.config.vocab_size == 128


@kinds
def test_embeddings_are_read_and_replaced(kind: str) -> None:
    """Input and output; ``tie_weights`` makes them one again."""
    model = build(kind)
    model.set_input_embeddings(nn.Embedding(99, 32))
    model.tie_weights()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    head = nn.Linear(32, 99, bias=False)
    model.set_output_embeddings(head)
    assert model.get_output_embeddings() is head
    assert "lm_head.weight" in model.all_tied_weights_keys


@kinds
@pytest.mark.parametrize("tied", [True, False])
def test_shards_load_in_every_way(kind: str, tied: bool, tmp_path) -> None:
    """In several files, with little memory, onto a device, in every dtype; every weight is found, and none is random."""
    model, ids = build(kind, tie_word_embeddings=tied), tokens()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert set(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]) <= set(
        model.state_dict()
    )
    expected = logits(model, ids)
    for settings in (
        {},
        {"low_cpu_mem_usage": True},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"device_map": "auto"},
    ):
        torch.manual_seed(1)
        again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, **settings)
        assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert torch.equal(logits(again, ids), expected)
        assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    for dtype in (torch.bfloat16, torch.float16, "bfloat16"):
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        wanted = torch.bfloat16 if dtype == "bfloat16" else dtype
        assert {p.dtype for p in again.parameters()} == {wanted}
        found = logits(again, ids, **({"depth": 1} if kind == "attractor" else {}))
        same = logits(model, ids, **({"depth": 1} if kind == "attractor" else {}))
        assert found.dtype == wanted
        assert (found.float() - same).norm() < 0.05 * same.norm()
        again.save_pretrained(tmp_path / str(dtype))
        kept = AutoModelForCausalLM.from_pretrained(tmp_path / str(dtype))
        assert kept.dtype == wanted


@kinds
def test_missing_and_mismatched_weights_are_drawn(kind: str, tmp_path) -> None:
    """As at initialisation: finite, and reported."""
    model = build(kind)
    state = {
        name: value for name, value in model.state_dict().items() if "layers.3" not in name and "lm_head" not in name
    }
    model.save_pretrained(tmp_path, state_dict=state)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert all("layers.3" in name for name in info["missing_keys"])
    assert len(info["missing_keys"]) > 5
    assert all(p.isfinite().all() and p.abs().max() < 10 for p in again.parameters())
    other, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, vocab_size=50, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert info["mismatched_keys"]
    assert logits(other, tokens().clamp_max(49)).isfinite().all()


@kinds
def test_copies_and_configurations_survive(kind: str, tmp_path) -> None:
    """A deep copy computes the same; a configuration through JSON is equal."""
    model = build(kind)
    assert torch.equal(logits(copy.deepcopy(model), tokens()), logits(model, tokens()))
    model.config.save_pretrained(tmp_path)
    assert type(model.config).from_pretrained(tmp_path).to_dict() == model.config.to_dict()


@kinds
def test_a_folder_for_the_hub_is_complete(kind: str, tmp_path) -> None:
    """Weights, both configurations, and a model card that names the library and says how to load the model."""
    model = build(kind)
    model.generation_config = GenerationConfig(eos_token_id=[2, 3], temperature=0.5, do_sample=True)
    model.save_pretrained(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= names
    card = (tmp_path / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "import attractor.models.language" in card
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


GENERATION = {
    "sampling": {"do_sample": True, "top_k": 5, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "lookup": {"prompt_lookup_num_tokens": 2},
    "static": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "repetition": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[5], [6, 7]]},
    "min p": {"do_sample": True, "min_p": 0.1, "typical_p": 0.9},
    "guidance": {"guidance_scale": 1.5},
    "chunked prefill": {"prefill_chunk_size": 4},
}


@kinds
@pytest.mark.parametrize("way", GENERATION)
def test_every_way_of_generation_runs(kind: str, way: str) -> None:
    """With the entries of a dictionary on request; greedy ways give the greedy text."""
    model, ids, settings = build(kind), tokens(1 if way == "lookup" else 2), GENERATION[way]
    if (kind, way) == ("looped", "static"):  # transformers sizes it by layers, and each iteration needs its own slot
        with pytest.raises(ConfigError, match="use a DynamicCache"):
            model.generate(ids, **GREEDY, **settings)
        return
    out = model.generate(ids, **{**GREEDY, "return_dict_in_generate": True, "output_scores": True, **settings})
    assert out.sequences.shape == (len(ids) * settings.get("num_return_sequences", 1), 18)
    assert out.scores
    if way in ("lookup", "static", "no cache", "chunked prefill"):
        assert torch.equal(out.sequences, model.generate(ids, **GREEDY))


@kinds
def test_generation_returns_scores_logits_states_and_a_cache_that_continues(kind: str) -> None:
    """A second call with the cache goes on where the first ended."""
    model, ids = build(kind), tokens()
    settings = {"return_dict_in_generate": True, "output_logits": True, "output_hidden_states": True}
    out = model.generate(ids, output_scores=True, **settings, **GREEDY)
    assert len(out.scores) == len(out.logits) == len(out.hidden_states) == 8
    assert out.hidden_states[0][-1].shape == (2, 10, 32)
    assert out.hidden_states[3][-1].shape == (2, 1, 32)
    assert torch.allclose(out.logits[3], logits(model, out.sequences[:, :13])[:, -1], atol=1e-3)
    more = model.generate(out.sequences, cache=out.cache, **GREEDY)
    assert torch.equal(more, model.generate(ids, **{**GREEDY, "max_new_tokens": 16, "min_new_tokens": 16}))


@kinds
@pytest.mark.parametrize("assistant", ["itself", "another", "plain"])
def test_an_assistant_changes_no_token(kind: str, assistant: str) -> None:
    """Assisted generation of transformers is greedy generation, also where drafts are rejected."""
    model, ids = build(kind), tokens(1)
    helper = model if assistant == "itself" else build("plain" if assistant == "plain" else kind, num_hidden_layers=3)
    assert torch.equal(model.generate(ids, assistant_model=helper, **GREEDY), model.generate(ids, **GREEDY))


@kinds
def test_padding_on_the_left_changes_no_token(kind: str) -> None:
    """Of a greedy text."""
    model, ids = build(kind), tokens()
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), ids], 1)
    mask = (padded != 0).long()
    found = model.generate(padded, attention_mask=mask, **GREEDY)[:, 4:]
    assert torch.equal(found, model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY))


@kinds
def test_generation_runs_in_half_precision_and_without_a_prompt(kind: str) -> None:
    """bfloat16 and float16 weights; the text may begin with the first token."""
    for dtype in (torch.bfloat16, torch.float16):
        model = build(kind).to(dtype)
        assert model.generate(tokens(), **GREEDY).shape == (2, 18)
    assert build(kind).generate(max_new_tokens=4, do_sample=False)[0, 0] == 1


@kinds
def test_the_backend_of_attention_is_sdpa(kind: str, tmp_path) -> None:
    """As in the configuration of a loaded model; others are refused by name."""
    model = build(kind)
    assert model.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path)
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa").config._attn_implementation == "sdpa"
    )
    with pytest.raises(ValueError, match="Flash"):
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


@kinds
def test_a_compiled_forward_has_the_same_logits(kind: str) -> None:
    """With graph breaks where a solve decides; at a fixed depth too."""
    torch.compiler.reset()
    model, ids = build(kind), tokens()
    compiled = torch.compile(model, backend="aot_eager")
    for budget in ({}, {"depth": 1}) if kind == "attractor" else ({},):
        assert (logits(compiled, ids, **budget) - logits(model, ids, **budget)).abs().max() < 1e-4


@kinds
def test_weights_offloaded_to_disk_give_the_same_logits(kind: str, tmp_path) -> None:
    """accelerate reads each layer when it is called."""
    accelerate = pytest.importorskip("accelerate")
    model, ids = build(kind, tie_word_embeddings=False), tokens()
    expected = logits(model, ids)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map={
            "model.embed_tokens": "cpu",
            "model.norm": "cpu",
            "lm_head": "cpu",
            **{
                name: "cpu"
                for name, _ in model.model.named_children()
                if name == "injection"
                for name in ["model.injection"]
            },
            **{f"model.layers.{i}": "disk" for i in range(4)},
        },
        offload_folder=tmp_path / "off",
    )
    assert accelerate is not None
    assert torch.equal(logits(again, ids), expected)
