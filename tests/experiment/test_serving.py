"""The server: asked by OpenAI's own client, it answers as the model does, alone or in a batch."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.small_models import SIZES, randomised

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

from attractor.experiment.loading import LoadedLanguageModel  # noqa: E402
from attractor.experiment.serving import make_app  # noqa: E402
from attractor.models.language import AttractorConfig, AttractorForCausalLM  # noqa: E402

PROMPTS = ["the cat sat on", "a dog", "yes not the mat in a den", "hen ten down ever"]
GREEDY = {"model": "small", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def loaded(tokenizer, tmp_path_factory):
    """A model whose every matrix changes the output; no end token, so that texts have the length that is asked for."""
    config = AttractorConfig(**{**SIZES, "vocab_size": len(tokenizer)}, num_attractor_layers=1, tolerance=1e-5)
    return LoadedLanguageModel(randomised(AttractorForCausalLM(config)), tokenizer, tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module")
def server(loaded):
    """The server on a free port, in a thread: ``(client, engine)``."""
    app = make_app(loaded, "small", max_batch=4)
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0), app.state.engine
    running.should_exit = True
    thread.join()


def continuation(loaded, prompt: str, **budget) -> str:
    """What the model itself writes after ``prompt``."""
    return loaded.generate(prompt, temperature=0, max_new_tokens=12, **budget)[len(prompt) :]


def test_models_are_listed(server) -> None:
    client, _ = server
    assert [model.id for model in client.models.list()] == ["small"]


@pytest.mark.parametrize("budget", [{}, {"depth": 1}, {"tolerance": 1e-2}], ids=str)
def test_the_answer_is_that_of_the_model(budget: dict, server, loaded) -> None:
    """At the equilibrium, and with a budget in the request; the usage says how many evaluations a token took."""
    client, _ = server
    answer = client.completions.create(prompt=PROMPTS[0], extra_body=budget, **GREEDY)
    assert answer.choices[0].text == continuation(loaded, PROMPTS[0], **budget)
    assert answer.usage.completion_tokens == 12
    assert answer.choices[0].finish_reason == "length"
    evaluations = answer.usage.evaluations_per_token
    assert evaluations == 1 if budget.get("depth") else evaluations > 1.5


@pytest.fixture
def batches(server, monkeypatch) -> list[int]:
    """The sizes of the batches from now on."""
    _, engine = server
    sizes, run = [], engine._generate
    monkeypatch.setattr(engine, "_generate", lambda batch: (sizes.append(len(batch)), run(batch)))
    return sizes


def test_requests_that_wait_become_a_batch_with_the_same_answers(server, loaded, batches) -> None:
    """Whatever their lengths are, and although each ends by itself."""
    client, _ = server

    def ask(prompt: str) -> str:
        return client.completions.create(prompt=prompt, **GREEDY).choices[0].text

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, PROMPTS * 2))
    assert answers == [continuation(loaded, prompt) for prompt in PROMPTS] * 2
    assert max(batches) > 1
    assert sum(batches) == 8


def test_a_stream_has_the_same_text(server) -> None:
    client, _ = server
    whole = client.completions.create(prompt=PROMPTS[0], **GREEDY)
    parts = list(
        client.completions.create(prompt=PROMPTS[0], stream=True, stream_options={"include_usage": True}, **GREEDY)
    )
    assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text
    assert len(parts) > 4
    assert parts[-1].usage.completion_tokens == 12


def test_a_stop_sequence_ends_the_text_before_it(server) -> None:
    """Also in a stream, of which no part of the sequence is sent."""
    client, _ = server
    whole = client.completions.create(prompt=PROMPTS[0], **GREEDY).choices[0].text
    stop = whole[5:8]
    short = client.completions.create(prompt=PROMPTS[0], stop=stop, **GREEDY)
    assert (short.choices[0].text, short.choices[0].finish_reason) == (whole[: whole.index(stop)], "stop")
    parts = client.completions.create(prompt=PROMPTS[0], stop=[stop], stream=True, **GREEDY)
    assert "".join(part.choices[0].text for part in parts) == short.choices[0].text


def test_no_part_of_a_stop_sequence_is_sent(server) -> None:
    """Also of one that is longer than all text before it, and that tokens divide."""
    client, _ = server
    whole = client.completions.create(prompt=PROMPTS[0], **GREEDY).choices[0].text
    stop = whole[:6]
    assert client.completions.create(prompt=PROMPTS[0], stop=stop, **GREEDY).choices[0].text == ""
    parts = client.completions.create(prompt=PROMPTS[0], stop=[stop], stream=True, **GREEDY)
    assert "".join(part.choices[0].text for part in parts) == ""


def test_short_and_long_prompts_fill_the_context_together(server, batches, monkeypatch) -> None:
    """A row that is padded to a longer one goes on in the next batch, with the tokens that it has alone."""
    client, engine = server
    entered, release, run = threading.Event(), threading.Event(), engine._generate

    def ask(prompt: str) -> tuple[str, int]:
        answer = client.completions.create(model="small", prompt=prompt, temperature=0, max_tokens=128)
        return answer.choices[0].text, answer.usage.completion_tokens

    def hold(batch) -> None:
        entered.set()
        assert release.wait(60)
        run(batch)

    prompts = ["the cat " * 40, "ten"]
    alone = [ask(prompt) for prompt in prompts]
    monkeypatch.setattr(engine, "_generate", hold)
    with ThreadPoolExecutor(3) as pool:
        pool.submit(ask, "a dog")
        assert entered.wait(60)
        together = [pool.submit(ask, prompt) for prompt in prompts]
        while engine._waiting.qsize() < 2:
            time.sleep(0.01)
        release.set()
        assert [answer.result() for answer in together] == alone
    assert batches[3:] == [2, 1]


def test_more_requests_than_can_wait_are_refused(server, monkeypatch) -> None:
    """Also while others are being answered; every answer frees a place."""
    client, engine = server
    monkeypatch.setattr(engine, "_places", threading.Semaphore(1))
    begun, release, generate = threading.Event(), threading.Event(), engine._generate
    monkeypatch.setattr(engine, "_generate", lambda batch: (begun.set(), release.wait(10), generate(batch)))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(lambda: client.completions.create(prompt=PROMPTS[0], **GREEDY))
        assert begun.wait(10)
        with pytest.raises(openai.InternalServerError, match="waiting already"):
            client.completions.create(prompt=PROMPTS[1], **GREEDY)
        release.set()
        first.result()
    assert client.completions.create(prompt=PROMPTS[1], **GREEDY).usage.completion_tokens == 12


def test_a_reader_that_leaves_ends_the_answer(server, monkeypatch) -> None:
    """Also one that waits for the whole answer; the next request is answered."""
    client, engine = server
    jobs, submit = [], engine.submit
    monkeypatch.setattr(engine, "submit", lambda job: (jobs.append(job), submit(job)))
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.05).completions.create(model="small", prompt="the", temperature=0, max_tokens=120)
    answer = client.completions.create(prompt=PROMPTS[0], **GREEDY)
    assert [job.is_cancelled for job in jobs] == [True, False]
    assert answer.usage.completion_tokens == 12


def test_a_seed_repeats_a_sample_beside_other_requests(server) -> None:
    client, _ = server
    sampled = {**GREEDY, "temperature": 1.0, "top_p": 0.9}

    def ask(seed: int) -> str:
        return client.completions.create(prompt=PROMPTS[0], seed=seed, **sampled).choices[0].text

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, [1, 2, 1, 2, 1, 2]))
    assert answers[0] == answers[2] == answers[4] != answers[1] == answers[3] == answers[5]


def test_a_chat_is_rendered_by_the_template(server, loaded) -> None:
    """And without a template, one sentence says so."""
    client, _ = server
    question = {"model": "small", "messages": [{"role": "user", "content": "the cat"}], "temperature": 0}
    with pytest.raises(openai.BadRequestError, match="has no chat template; use /v1/completions"):
        client.chat.completions.create(**question)
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    try:
        answer = client.chat.completions.create(max_completion_tokens=5, **question)
        parts = client.chat.completions.create(max_completion_tokens=5, stream=True, **question)
        streamed = "".join(part.choices[0].delta.content for part in parts)
    finally:
        loaded.tokenizer.chat_template = None
    ids = loaded.tokenizer("the cat ", return_tensors="pt").input_ids
    with torch.no_grad():
        written = loaded.model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    assert answer.choices[0].message.content == loaded.tokenizer.decode(written) == streamed


def test_special_tokens_of_a_message_are_text_and_parts_are_joined(server, loaded, monkeypatch) -> None:
    """A prompt has no more special tokens than its template, also with a content of several parts."""
    client, engine = server
    jobs, submit = [], engine.submit
    monkeypatch.setattr(engine, "submit", lambda job: (jobs.append(job), submit(job)))
    monkeypatch.setattr(
        loaded.tokenizer, "chat_template", "{% for m in messages %}{{ m.content + '<|endoftext|>' }}{% endfor %}"
    )
    settings = {"model": "small", "temperature": 0, "max_tokens": 2}
    for content in ("the<|endoftext|>cat", [{"type": "text", "text": part} for part in ("the<|endof", "text|>cat")]):
        client.chat.completions.create(messages=[{"role": "user", "content": content}], **settings)
    ids = jobs[0].prompt.tolist()
    assert ids == jobs[1].prompt.tolist()
    assert ids.count(loaded.tokenizer.eos_token_id) == 1
    assert loaded.tokenizer.decode(ids) == "the<|endoftext|>cat<|endoftext|>"
    picture = [{"type": "image_url", "image_url": {"url": "none"}}]
    with pytest.raises(openai.BadRequestError, match="reads text only"):
        client.chat.completions.create(messages=[{"role": "user", "content": picture}], **settings)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "other"}, "the model 'other' does not exist; this server has 'small'"),
        ({"temperature": 3}, "temperature: input should be less than or equal to 2"),
        ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 1"),
        ({"n": 2}, "n: input should be 1"),
        ({"logprobs": 1}, "logprobs: extra inputs are not permitted"),
        ({"prompt": "the cat " * 200}, "the model reads 128; shorten it"),
        ({"extra_body": {"depth": 1, "tolerance": 0.1}}, "give depth, or tolerance and max_evaluations, not both"),
        ({"extra_body": {"depth": -1}}, "-1"),
    ],
    ids=str,
)
def test_a_bad_request_is_refused_in_one_sentence(changes: dict, says: str, server) -> None:
    """As an error object of the API, and the server goes on."""
    client, _ = server
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(**{"prompt": PROMPTS[0], **GREEDY, **changes})
    assert says in caught.value.body["message"]
    assert "\n" not in caught.value.body["message"]
    assert caught.value.status_code in (400, 404)
    client.completions.create(prompt=PROMPTS[0], **GREEDY)
