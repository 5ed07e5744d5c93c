"""Trainers, adapters and tools of the ecosystem see a model that is shaped like a stock model of ``transformers``."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, DynamicCache, Qwen3Config, Qwen3ForCausalLM, StaticCache, Trainer, TrainingArguments

from attractor.data.text import train_tokenizer
from attractor.errors import ConfigError, DataError
from attractor.models.language import AttractorConfig, AttractorForCausalLM, LoopedConfig, LoopedForCausalLM

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
MODELS = {
    "attractor": lambda **changes: AttractorForCausalLM(
        AttractorConfig(**{**SIZES, "gate_start": 0.4, "gate_limit": 0.5, **changes})
    ),
    "plain": lambda **changes: AttractorForCausalLM(AttractorConfig(**SIZES, num_attractor_layers=0, **changes)),
    "looped": lambda **changes: LoopedForCausalLM(LoopedConfig(**SIZES, num_core_layers=1, **changes)),
}
kinds = pytest.mark.parametrize("kind", MODELS)


def build(kind: str = "attractor", **changes) -> AttractorForCausalLM:
    """A small model in evaluation mode; every matrix changes the output."""
    torch.manual_seed(0)
    model = MODELS[kind](**changes)
    for p in model.parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=0.1)
    return model.eval()


def tokens(batch: int = 2, length: int = 12, seed: int = 0) -> Tensor:
    return torch.randint(2, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def next_token(logits: Tensor, labels: Tensor, **settings) -> float:
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), **settings))


def trainer(model: nn.Module, folder, **settings) -> Trainer:
    pytest.importorskip("accelerate")
    rows = [{"input_ids": row, "labels": row} for row in tokens(6).tolist()]
    names = {name: settings.pop(name) for name in ("compute_metrics",) if name in settings}
    base = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    arguments = TrainingArguments(str(folder), per_device_eval_batch_size=2, **base, **settings)
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, **names)


@kinds
def test_label_smoothing_is_for_the_next_token(kind: str, tmp_path) -> None:
    """Trainer shifts the labels of the classes it knows; ours are among them."""
    model, ids = build(kind), tokens()
    with torch.no_grad():
        loss = trainer(model, tmp_path, label_smoothing_factor=0.1).compute_loss(
            model, {"input_ids": ids, "labels": ids}
        )
        assert float(loss) == pytest.approx(next_token(model(ids).logits, ids, label_smoothing=0.1), abs=1e-5)


@kinds
def test_trainer_predicts_and_evaluates_with_metrics(kind: str, tmp_path) -> None:
    """Predictions are the logits, and nothing else."""
    shapes = []
    run = trainer(build(kind), tmp_path, compute_metrics=lambda p: shapes.append(p.predictions.shape) or {})
    run.evaluate()
    assert shapes == [(6, 12, 97)]
    assert run.predict(run.eval_dataset).predictions.shape == (6, 12, 97)
    assert run.predict([{"input_ids": row} for row in tokens().tolist()]).predictions.shape == (2, 12, 97)


def test_gradient_accumulation_weighs_every_token_equally(tmp_path) -> None:
    """Rows of different lengths in several small batches have the loss of one large batch."""
    model, ids = build(), tokens(2)
    labels = ids.clone()
    labels[1, 4:] = -100
    num = (labels[:, 1:] != -100).sum()
    with torch.no_grad():
        parts = [model(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=num).loss for i in (0, 1)]
        assert float(sum(parts)) == pytest.approx(float(model(ids, labels=labels).loss), abs=1e-5)
    assert trainer(model, tmp_path).model_accepts_loss_kwargs


@kinds
@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_trains(kind: str, checkpointing: bool, tmp_path) -> None:
    """Two steps, with and without gradient checkpointing, change every matrix."""
    model = build(kind).train()
    before = [p.detach().clone() for p in model.parameters()]
    trainer(model, tmp_path, max_steps=2, gradient_checkpointing=checkpointing).train()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True) if a.ndim == 2)


@kinds
def test_outputs_have_the_entries_of_stock_outputs(kind: str) -> None:
    """With labels too; as tuples they hold nothing else."""
    model, ids = build(kind), tokens()
    qwen = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, num_key_value_heads=4)).eval()
    with torch.no_grad():
        for settings in ({}, {"labels": ids}, {"use_cache": True}, {"output_hidden_states": True}):
            ours = model(ids, return_dict=False, **settings)
            theirs = qwen(ids, return_dict=False, **settings)
            assert [type(x) for x in ours] == [type(x) for x in theirs]
        output = model(ids, labels=ids, output_hidden_states=True)
        assert output.logits.shape == (2, 12, 97)
        assert float(output.loss) == pytest.approx(next_token(output.logits, ids), abs=1e-5)
        assert torch.equal(model.lm_head(output.hidden_states[-1]), output.logits)
        lean = model(ids, labels=ids, return_logits=False)
        assert lean.logits is None
        assert float(lean.loss) == pytest.approx(float(output.loss), abs=1e-5)
        shifted = F.pad(ids, (0, 1), value=-100)[:, 1:]
        assert float(model(ids, shift_labels=shifted).loss) == pytest.approx(float(output.loss), abs=1e-5)


@kinds
def test_the_decoder_is_called_alone(kind: str, tmp_path) -> None:
    """Its last hidden state is what the head reads; the Auto class loads it from a checkpoint."""
    model, ids = build(kind), tokens()
    model.save_pretrained(tmp_path)
    alone = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(ids).logits
        for decoder in (model.model, model.base_model, alone):
            assert torch.equal(model.lm_head(decoder(input_ids=ids).last_hidden_state), expected)
        assert torch.equal(alone(ids, return_dict=False)[0], alone(ids)[0])
    assert type(alone) is type(model.model)


@kinds
def test_every_argument_of_stock_models_works_or_is_refused(kind: str) -> None:
    """Positions, caches, positions of logits, arguments without effect; unknown ones are errors."""
    model, ids = build(kind), tokens()
    with torch.no_grad():
        logits = model(ids).logits
        assert torch.equal(model(ids, position_ids=torch.arange(12)).logits, logits)
        assert torch.equal(model(ids, position_ids=torch.arange(12)[None]).logits, logits)
        assert torch.equal(model(ids, attention_mask=torch.ones_like(ids)).logits, logits)
        assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, logits)
        keep = torch.tensor([3, 11])
        assert torch.allclose(model(ids, logits_to_keep=keep).logits, logits[:, keep], atol=1e-5)
        assert torch.allclose(model(ids, logits_to_keep=2).logits, logits[:, -2:], atol=1e-5)
        cache = DynamicCache()
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # the name is not deprecated
            model(ids[:, :8], past_key_values=cache)
        more = model(ids[:, 8:], past_key_values=cache, cache_position=torch.arange(8, 12), use_cache=True)
        assert more.cache is cache
        assert (more.logits - logits[:, 8:]).abs().max() < 1e-3
        for name in ("cache_position", "token_type_ids", "output_router_logits", "output_attentions"):
            assert torch.equal(model(ids, **{name: None}).logits, logits)
        assert model(ids, use_cache=False).cache is None
        with pytest.raises(DataError, match=r"attention_mask of shape \(2, 1, 12, 12\)"):
            model(ids, attention_mask=torch.ones(2, 1, 12, 12))
        with pytest.raises(DataError, match="position_ids of shape"):
            model(ids, position_ids=torch.arange(24).view(2, 1, 12))
        with pytest.raises(ConfigError, match="output_attentions"):
            model(ids, output_attentions=True)
        with pytest.raises(TypeError, match="logits_to_kept"):
            model(ids, logits_to_kept=2)


def test_libraries_read_numbers_of_heads() -> None:
    """Where none is given, the model's configuration names them, and a static cache works."""
    model, ids = build(num_key_value_heads=None, head_dim=None), tokens()
    assert (model.config.num_key_value_heads, model.config.head_dim) == (4, 8)
    settings = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, cache_implementation="static", **settings), expected)
    with torch.no_grad():
        cache = StaticCache(config=model.config, max_cache_len=20)
        assert torch.allclose(model(ids, cache=cache).logits, model(ids).logits, atol=1e-4)


def test_stop_strings_end_a_text() -> None:
    """The first token that completes one is the last."""
    tokenizer = train_tokenizer(["the sea and the moon and the night"] * 3, 265)
    torch.manual_seed(0)
    model = MODELS["attractor"](vocab_size=265).eval()  # a new model repeats the last token
    ids = torch.tensor([tokenizer("the sea")["input_ids"]])
    free = model.generate(ids, max_new_tokens=8, do_sample=False)
    stop = tokenizer.convert_ids_to_tokens(int(free[0, ids.shape[1]]))
    settings = {"stop_strings": [stop], "tokenizer": tokenizer, "max_new_tokens": 8, "do_sample": False}
    assert model.generate(ids, **settings).shape[1] == ids.shape[1] + 1


def test_generation_in_training_is_that_of_evaluation() -> None:
    """Trainers generate between their steps; every module keeps its mode."""
    model, ids, settings = build(), tokens(), {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(ids, **settings)
    model.train().lm_head.eval()
    assert torch.equal(model.generate(ids, **settings), expected)
    assert model.training
    assert not model.lm_head.training


class Shifted(nn.Linear):
    """A head whose ``forward`` does more than its weight says."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(-1)


@pytest.mark.parametrize("change", ["bias", "forward", "hook", "int8"])
def test_the_loss_is_that_of_the_logits_whatever_the_head_is(change: str) -> None:
    """With a bias, another forward, a hook, or quantized weights."""
    model, ids = build(tie_word_embeddings=False), tokens()
    if change == "bias":
        model.lm_head = nn.Linear(32, 97)
    elif change == "forward":
        model.lm_head = Shifted(32, 97)
    elif change == "hook":
        model.lm_head.register_forward_hook(lambda module, inputs, out: out.flip(-1))
    else:
        model.lm_head = torch.ao.quantization.quantize_dynamic(nn.Sequential(model.lm_head), {nn.Linear})[0]
    with torch.no_grad():
        expected = next_token(model(ids).logits, ids)
        for settings in ({}, {"return_logits": False}):
            assert float(model(ids, labels=ids, **settings).loss) == pytest.approx(expected, abs=1e-5)
    if change != "int8":
        assert "gate" in model.diagnostics(ids)


def test_adapters_on_the_head_and_the_gates_are_trained() -> None:
    """The gradient reaches them, with and without logits."""
    peft = pytest.importorskip("peft")
    for settings in ({}, {"return_logits": False}):
        model = build(tie_word_embeddings=False)
        tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "lm_head"])).train()
        tuned(input_ids=tokens(), labels=tokens(), **settings).loss.backward()
        assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)


def test_offloaded_weights_have_the_same_loss_and_text() -> None:
    """Where accelerate keeps the weights elsewhere and brings them for each call."""
    accelerate = pytest.importorskip("accelerate")
    here, away, ids = build(tie_word_embeddings=False), build(tie_word_embeddings=False), tokens()
    accelerate.cpu_offload(away, execution_device=torch.device("cpu"))
    with torch.no_grad():
        for settings in ({}, {"return_logits": False}):
            assert float(away(ids, labels=ids, **settings).loss) == float(here(ids, labels=ids, **settings).loss)
        assert away(ids).solution.outcome.converged
    settings = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(away.generate(ids[:1], **settings), here.generate(ids[:1], **settings))


def test_supervised_fine_tuning_reports_the_loss_of_the_model(tmp_path) -> None:
    """TRL computes the loss from the decoder and the head."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    texts = [f"the sea and the {word} of the town" for word in ("night", "day", "sun", "moon")]
    tokenizer = train_tokenizer(texts, 270)
    model = build(vocab_size=270, eos_token_id=0, bos_token_id=0, pad_token_id=0)
    config = trl.SFTConfig(
        str(tmp_path), max_steps=1, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, save_strategy="no"
    )
    rows = datasets.Dataset.from_dict({"text": texts})
    run = trl.SFTTrainer(model, config, train_dataset=rows, eval_dataset=rows.select([0]), processing_class=tokenizer)
    run.train()
    reported = run.evaluate()["eval_loss"]
    ids = tokenizer(texts[0])["input_ids"]
    with torch.no_grad():
        own = [float(model.eval()(torch.tensor([row]), labels=torch.tensor([row])).loss) for row in (ids, [*ids, 0])]
    assert min(abs(reported - loss) for loss in own) < 1e-3
