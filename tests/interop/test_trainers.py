"""Training with the ecosystem's trainers: exact resume, answers only, and adapters that end as a checkpoint."""

import pytest
import torch
from tests.chat import CHATML, chat_checkpoint, chat_tokenizer, conversations
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

import attractor
from attractor.data.text.conversations import encode_conversation
from attractor.models.language import AttractorForCausalLM

ARGUMENTS = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 1, "learning_rate": 1e-3}
MARKED = CHATML.replace(
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}",
    "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small random model whose tokenizer has a chat template."""
    return chat_checkpoint(tmp_path_factory.mktemp("trainers") / "model")


def losses(run: Trainer) -> list[float]:
    return [line["loss"] for line in run.state.log_history if "loss" in line]


def test_a_trainer_resumes_with_the_losses_of_the_whole_run(checkpoint, tmp_path) -> None:
    """Bitwise, at the equilibrium, from a checkpoint that it wrote when it was stopped."""
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(2, 280, (12, 16)).tolist()]

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 2

    def trainer(name: str, *callbacks) -> Trainer:
        settings = TrainingArguments(
            str(tmp_path / name), max_steps=4, save_steps=2, per_device_train_batch_size=2, **ARGUMENTS
        )
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        return Trainer(model, settings, train_dataset=rows, callbacks=list(callbacks))

    whole, part, rest = trainer("whole"), trainer("parts", Stop()), trainer("parts")
    whole.train()
    part.train()
    rest.train(resume_from_checkpoint=True)
    assert len(losses(part)) == 2
    assert losses(rest) == losses(whole)
    assert len(set(losses(whole))) == 4
    for a, b in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_supervised_fine_tuning_on_answers_has_the_loss_of_our_own_labels(checkpoint, tmp_path) -> None:
    """TRL finds the answers by marks in the template, we by its text; a model trained with it is a checkpoint of ours."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    tokenizer = chat_tokenizer(MARKED)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    settings = trl.SFTConfig(
        str(tmp_path), max_steps=2, assistant_only_loss=True, bf16=False, save_strategy="no",
        per_device_eval_batch_size=1, **ARGUMENTS,
    )  # fmt: skip
    rows = datasets.Dataset.from_list(conversations())
    run = trl.SFTTrainer(model, settings, train_dataset=rows, eval_dataset=rows.select([1]), processing_class=tokenizer)
    run.train()
    [(ids, labels)] = encode_conversation(tokenizer, conversations()[1]["messages"])
    with torch.no_grad():
        ids, labels = torch.from_numpy(ids)[None], torch.from_numpy(labels)[None]
        assert run.evaluate()["eval_loss"] == pytest.approx(float(model.eval()(ids, labels=labels).loss), abs=1e-3)
        assert abs(float(model(ids, labels=ids).loss - model(ids, labels=labels).loss)) > 1e-2
    run.save_model(str(tmp_path / "tuned"))
    loaded = attractor.load(tmp_path / "tuned")
    assert loaded.chat([{"role": "user", "content": "the cat"}], max_new_tokens=3, temperature=0) is not None


def test_adapters_are_trained_merged_saved_and_loaded(checkpoint, tmp_path) -> None:
    """The loaded checkpoint needs no PEFT, and has the logits of the tuned model, in both layers and at any depth."""
    peft = pytest.importorskip("peft")
    tuned = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(checkpoint), peft.LoraConfig(task_type="CAUSAL_LM", r=4)
    )
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(2, 280, (8, 16)).tolist()]
    settings = TrainingArguments(str(tmp_path / "run"), max_steps=3, save_strategy="no", **ARGUMENTS)
    Trainer(tuned, settings, train_dataset=rows).train()
    ids = torch.randint(2, 280, (2, 12))
    with torch.no_grad():
        expected = {depth: tuned.eval()(input_ids=ids, depth=depth).logits for depth in (0, 1, None)}
        chat_tokenizer().save_pretrained(tmp_path / "merged")
        tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
        loaded = attractor.load(tmp_path / "merged").model
        assert type(loaded) is AttractorForCausalLM
        original = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
        for depth, logits in expected.items():
            assert (loaded(ids, depth=depth).logits - logits).abs().max() < 1e-3
            assert (original(ids, depth=depth).logits - logits).abs().max() > 1e-2


def test_a_loop_of_accelerate_has_the_losses_of_a_plain_loop(checkpoint, tmp_path) -> None:
    """Its saved state continues the run, and the unwrapped model is a checkpoint of ours."""
    accelerate = pytest.importorskip("accelerate")
    rows = torch.randint(2, 280, (4, 2, 16))

    def step(model, optimizer, ids, backward) -> float:
        loss = model(input_ids=ids, labels=ids).loss
        backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    def prepared():
        model = AutoModelForCausalLM.from_pretrained(checkpoint).train()
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    plain = prepared()
    expected = [step(*plain, ids, torch.Tensor.backward) for ids in rows]
    accelerator = accelerate.Accelerator(cpu=True)
    first = accelerator.prepare(*prepared())
    found = [step(*first, ids, accelerator.backward) for ids in rows[:2]]
    accelerator.save_state(str(tmp_path / "state"))
    accelerator.free_memory()
    second = accelerator.prepare(*prepared())
    accelerator.load_state(str(tmp_path / "state"))
    assert [*found, *(step(*second, ids, accelerator.backward) for ids in rows[2:])] == expected
    model = accelerator.unwrap_model(second[0])
    model.save_pretrained(tmp_path / "tuned", save_function=accelerator.save)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), plain[0].parameters(), strict=True))
