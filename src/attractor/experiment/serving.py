"""A server with OpenAI's API for a language model at its equilibrium, or with any other budget.

One thread generates. It takes the requests that wait and have equal settings as one batch: the answer to a request does
not depend on the others. A tensor of stop decisions after every token lets rows end one by one, and streams their text.
"""

import asyncio
import json
import queue
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from attractor.errors import AttractorError, ConfigError, requires_extra
from attractor.evaluation.text import encode, known_budget, max_length
from attractor.experiment.loading import LoadedLanguageModel
from attractor.files import first_line

with requires_extra("serve"):
    from fastapi import FastAPI, HTTPException
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, StreamingResponse
    from pydantic import BaseModel, ConfigDict, Field


class Request(BaseModel):
    """The fields that both kinds of requests share. A field that would be ignored is refused."""

    model_config = ConfigDict(extra="forbid")

    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    n: Literal[1] = 1
    user: str | None = None
    depth: int | None = None
    tolerance: float | None = None
    max_evaluations: int | None = None

    def settings(self) -> dict[str, Any]:
        """Return the arguments for ``model.generate`` that say how the next token is chosen."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


class CompletionRequest(Request):
    prompt: str
    max_tokens: int = Field(16, ge=1)


class ChatRequest(Request):
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)


@dataclass(eq=False, kw_only=True)
class Job:
    """A prompt ``ids`` (T,) and what has been generated for it. ``emit`` gets new text, and at last the job itself."""

    ids: Tensor
    max_tokens: int
    stop: tuple[str, ...]
    settings: dict[str, Any]
    seed: int | None
    emit: Callable[[Any], object]
    text: str = ""
    num_tokens: int = 0
    num_evaluations: float = 0.0
    finish_reason: str | None = None
    is_cancelled: bool = False
    error: Exception | None = None
    tokens: list[int] = field(default_factory=list)

    def add(self, token: int, evaluations: float, tokenizer: Any, ends: set[int]) -> bool:
        """Add a token, emit the text that is certain, and return whether the job is done."""
        self.num_tokens += 1
        self.num_evaluations += evaluations
        self.tokens.append(token)
        text = tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        found = [text.index(stop) for stop in self.stop if stop in text]
        if found or token in ends:
            self.finish_reason, text = "stop", text[: min(found)] if found else text
        elif self.num_tokens >= self.max_tokens:
            self.finish_reason = "length"
        else:  # the rest may belong to a stop sequence, or to a character of several tokens
            text = text.rstrip("\ufffd")
            text = text[: len(text) - max((len(stop) - 1 for stop in self.stop), default=0)]
        if len(text) > len(self.text):
            self.emit(text[len(self.text) :])
            self.text = text
        return self.finish_reason is not None or self.is_cancelled

    def usage(self) -> dict[str, Any]:
        used = {"prompt_tokens": len(self.ids), "completion_tokens": self.num_tokens}
        mean = self.num_evaluations / max(self.num_tokens, 1)
        return {**used, "total_tokens": sum(used.values()), "evaluations_per_token": round(mean, 3)}


class Engine:
    """The thread that generates, for up to ``max_batch`` requests at a time."""

    def __init__(self, loaded: LoadedLanguageModel, max_batch: int) -> None:
        self.model: Any = loaded.model
        self.tokenizer: Any = loaded.tokenizer
        self.max_batch, self.batches = max_batch, list[int]()
        self._waiting: queue.Queue[Job] = queue.Queue()
        self._evaluations: Tensor | None = None
        self.model.register_forward_hook(self._note)
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, job: Job) -> None:
        self._waiting.put(job)

    def _note(self, module: Any, inputs: Any, output: Any) -> None:
        solution = getattr(output, "solution", None)
        self._evaluations = None if solution is None else solution.evaluations[:, -1]

    def _work(self) -> None:
        waiting: list[Job] = []
        while True:
            waiting.append(self._waiting.get()) if not waiting else None
            while not self._waiting.empty():
                waiting.append(self._waiting.get())
            first = waiting[0]
            is_alone = first.seed is not None and first.settings["do_sample"]  # its random numbers are its own
            batch = [job for job in waiting if job is first or (not is_alone and self._fits(job, first))]
            batch = batch[: self.max_batch]
            waiting = [job for job in waiting if job not in batch]
            try:
                self._generate(batch)
            except Exception as error:  # the library raises many kinds; the server goes on
                for job in batch:
                    job.error = error
            for job in batch:
                job.emit(job)

    @staticmethod
    def _fits(job: Job, first: Job) -> bool:
        return job.settings == first.settings and (job.seed is None or not job.settings["do_sample"])

    def _generate(self, batch: list[Job]) -> None:
        config, device = self.model.generation_config, self.model.device
        own_ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        ends = {end for end in [*own_ends, self.tokenizer.eos_token_id] if end is not None}
        length = max(len(job.ids) for job in batch)
        ids = torch.full((len(batch), length), self.tokenizer.eos_token_id or 0)
        mask = torch.zeros_like(ids)
        for row, job in enumerate(batch):
            ids[row, length - len(job.ids) :], mask[row, length - len(job.ids) :] = job.ids, 1
        done = [False] * len(batch)

        def after_token(tokens: Tensor, scores: Any, **others: Any) -> Tensor:
            counts = [0.0] * len(batch) if self._evaluations is None else self._evaluations.tolist()
            for row, (job, token) in enumerate(zip(batch, tokens[:, -1].tolist(), strict=True)):
                done[row] = done[row] or job.add(token, counts[row], self.tokenizer, ends)
            return torch.tensor(done, device=tokens.device)

        self.batches.append(len(batch))
        with torch.random.fork_rng(enabled=batch[0].seed is not None):
            if batch[0].seed is not None:
                torch.manual_seed(batch[0].seed)
            self.model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max(job.max_tokens for job in batch),
                stopping_criteria=[after_token],
                eos_token_id=sorted(ends) or None,
                pad_token_id=self.tokenizer.eos_token_id or 0,
                **batch[0].settings,
            )


def make_app(loaded: LoadedLanguageModel, name: str, *, max_batch: int = 8, **budget: Any) -> FastAPI:
    """Return the server of a model as an application for ``uvicorn``.

    ``name`` is the model's name in requests. ``budget`` (``depth``; ``tolerance``, ``max_evaluations``) holds for
    requests that give none. Raises ConfigError for a budget that the model does not have.
    """
    if max_batch < 1:
        raise ConfigError(f"max_batch={max_batch}: give a whole number from 1 up.")
    known_budget(loaded.model, budget)
    engine, app = Engine(loaded, max_batch), FastAPI(title="attractor")
    app.state.engine = engine

    def start(request: Request, ids: Tensor, max_tokens: int | None) -> tuple[Job, asyncio.Queue[Any]]:
        if request.model != name:
            raise HTTPException(404, f"the model {request.model!r} does not exist; this server has {name!r}.")
        asked = {key: getattr(request, key) for key in ("depth", "tolerance", "max_evaluations")}
        used = known_budget(loaded.model, asked if any(v is not None for v in asked.values()) else budget)
        room = max_length(loaded.model) - len(ids)
        if room < 1:
            raise ConfigError(f"the prompt has {len(ids)} tokens and the model reads {room + len(ids)}; shorten it.")
        stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
        events, loop = asyncio.Queue[Any](), asyncio.get_running_loop()
        job = Job(
            ids=ids,
            max_tokens=min(max_tokens or room, room),
            stop=tuple(stop for stop in stops if stop),
            settings=request.settings() | used,
            seed=request.seed,
            emit=lambda event: loop.call_soon_threadsafe(events.put_nowait, event),
        )
        engine.submit(job)
        return job, events

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "attractor"}]}

    @app.post("/v1/completions")
    async def complete(request: CompletionRequest) -> Any:
        from attractor.data.text.documents import repair

        job, events = start(request, encode(loaded.tokenizer, repair(request.prompt)), request.max_tokens)
        return await _respond(request, job, events, kind="text_completion")

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> Any:
        ids = _chat_ids(loaded.tokenizer, request.messages)
        job, events = start(request, ids, request.max_completion_tokens or request.max_tokens)
        return await _respond(request, job, events, kind="chat.completion")

    @app.exception_handler(RequestValidationError)
    async def refuse_fields(_: Any, error: Any) -> JSONResponse:
        first = error.errors()[0]
        return _error(400, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg'].lower()}.")

    @app.exception_handler(AttractorError)
    async def refuse(_: Any, error: Exception) -> JSONResponse:
        return _error(400, str(error))

    @app.exception_handler(404)
    @app.exception_handler(HTTPException)
    async def refuse_other(_: Any, error: Any) -> JSONResponse:
        return _error(error.status_code, error.detail)

    return app


def _chat_ids(tokenizer: Any, messages: list[dict[str, Any]]) -> Tensor:
    """Return the tokens (T,) of a conversation in the tokenizer's chat template."""
    if not tokenizer.chat_template:
        raise ConfigError("this model's tokenizer has no chat template; use /v1/completions.")
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program of its own
        raise ConfigError(f"messages: the chat template cannot render them ({first_line(error)}).") from error
    return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]


async def _respond(request: Request, job: Job, events: "asyncio.Queue[Any]", *, kind: str) -> Any:
    """Return the complete answer, or a stream of its parts."""
    is_chat = kind.startswith("chat")
    base = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}

    def part(text: str, finish_reason: str | None) -> str:
        content: dict[str, Any] = {"delta": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        choice = {"index": 0, **content, "finish_reason": finish_reason, "logprobs": None}
        return _event({**base, "object": "chat.completion.chunk" if is_chat else kind, "choices": [choice]})

    async def stream() -> AsyncIterator[str]:
        try:
            while (event := await events.get()) is not job:
                yield part(event, None)
            if job.error is not None:
                yield _event(_error_body(500, first_line(job.error)))
                return
            yield part("", job.finish_reason)
            if (request.stream_options or {}).get("include_usage"):
                kind_of_part = "chat.completion.chunk" if is_chat else kind
                yield _event({**base, "object": kind_of_part, "choices": [], "usage": job.usage()})
            yield "data: [DONE]\n\n"
        finally:
            job.is_cancelled = True  # the reader may have gone

    if request.stream:
        return StreamingResponse(stream(), media_type="text/event-stream")
    while await events.get() is not job:
        pass
    if job.error is not None:
        return _error(500, first_line(job.error))
    text: dict[str, Any] = {"text": job.text}
    if is_chat:
        text = {"message": {"role": "assistant", "content": job.text}}
    choice = {"index": 0, **text, "finish_reason": job.finish_reason, "logprobs": None}
    return {**base, "object": kind, "choices": [choice], "usage": job.usage()}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _error_body(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse(_error_body(status, message), status)
