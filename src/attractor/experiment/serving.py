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
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Literal

import torch
from torch import Tensor

from attractor.data.text import encode_rendered, end_of_turn, render
from attractor.errors import AttractorError, ConfigError, requires_extra
from attractor.evaluation.text import encode, known_budget, max_length
from attractor.experiment.loading import LoadedLanguageModel
from attractor.files import first_line

with requires_extra("serve"):
    from fastapi import FastAPI
    from fastapi import Request as Connection
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, StreamingResponse
    from pydantic import BaseModel, ConfigDict, Field
    from starlette.exceptions import HTTPException

MAX_WAITING = 256  # requests, with those that are being answered


class Request(BaseModel):
    """The fields that both kinds of requests share. A field that would be ignored is refused."""

    model_config = ConfigDict(extra="forbid")

    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
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
        if self.temperature < 1e-4:  # logits divided by less overflow
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
    """A prompt (T,) and what has been generated for it. ``emit`` gets new text, and at last the job itself.

    A token of ``ends`` or a text of ``stop`` ends the answer.
    """

    prompt: Tensor
    max_tokens: int
    ends: frozenset[int]
    stop: tuple[str, ...]
    settings: dict[str, Any]
    seed: int | None
    emit: Callable[[Any], object]
    text: str = ""
    num_evaluations: float = 0.0
    finish_reason: str | None = None
    is_cancelled: bool = False
    error: BaseException | None = None
    tokens: list[int] = field(default_factory=list)

    @property
    def ids(self) -> Tensor:
        return torch.cat((self.prompt, self.prompt.new_tensor(self.tokens)))

    @property
    def is_done(self) -> bool:
        return self.finish_reason is not None or self.is_cancelled or self.error is not None

    def add(self, token: int, evaluations: float, tokenizer: Any) -> None:
        """Add a token, and emit the text that is certain."""
        self.num_evaluations += evaluations
        self.tokens.append(token)
        text = tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        found = [text.index(stop) for stop in self.stop if stop in text]
        if found or token in self.ends:
            self.finish_reason, text = "stop", text[: min(found)] if found else text
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"
        else:  # the rest may belong to a character of several tokens, or to a stop sequence
            text = text.rstrip("\ufffd")
            begun = [n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
            text = text[: len(text) - max(begun, default=0)]
        if len(text) > len(self.text):
            self.emit(text[len(self.text) :])
            self.text = text

    def usage(self) -> dict[str, Any]:
        used = {"prompt_tokens": len(self.prompt), "completion_tokens": len(self.tokens)}
        mean = self.num_evaluations / max(len(self.tokens), 1)
        return {**used, "total_tokens": sum(used.values()), "evaluations_per_token": round(mean, 3)}


class Engine:
    """The thread that generates, for up to ``max_batch`` requests at a time."""

    def __init__(self, loaded: LoadedLanguageModel, max_batch: int) -> None:
        self.model: Any = loaded.model
        self.tokenizer: Any = loaded.tokenizer
        self.max_batch = max_batch
        self._waiting: queue.Queue[Job] = queue.Queue()
        self._places = threading.Semaphore(MAX_WAITING)
        self._evaluations: Tensor | None = None
        self.model.register_forward_hook(self._note)
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, job: Job) -> None:
        """Let the job wait for its turn. Raises ``queue.Full``."""
        if not self._places.acquire(blocking=False):
            raise queue.Full
        self._waiting.put(job)

    def ends(self, *, is_chat: bool) -> frozenset[int]:
        """Return the tokens that end an answer."""
        own = self.model.generation_config.eos_token_id
        ends = {*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id}
        ends |= {end_of_turn(self.tokenizer)} if is_chat else set()
        return frozenset(ends - {None})

    def _note(self, module: Any, inputs: Any, output: Any) -> None:
        solution = getattr(output, "solution", None)
        self._evaluations = None if solution is None else solution.evaluations[:, -1]

    def _work(self) -> None:
        waiting: list[Job] = []
        while True:
            waiting.append(self._waiting.get()) if not waiting else None
            while not self._waiting.empty():
                waiting.append(self._waiting.get())
            batch = self._choose([job for job in waiting if not job.is_done])
            try:
                if batch:
                    self._generate(batch)
            except BaseException as error:  # libraries raise many kinds, some not derived from Exception
                for job in batch:
                    job.error = None if job.is_done else error
            done = [job.is_done for job in waiting]  # read once: a client may cancel a job at any moment
            for job in compress(waiting, done):
                self._places.release()
                job.emit(job)
            waiting = [job for job, is_done in zip(waiting, done, strict=True) if not is_done]

    def _choose(self, waiting: list[Job]) -> list[Job]:
        """Return the jobs of the next batch: those with the settings of the one that has waited longest."""
        if not waiting or (waiting[0].seed is not None and waiting[0].settings["do_sample"]):
            return waiting[:1]  # its random numbers are its own
        fitting = [
            job
            for job in waiting
            if job.settings == waiting[0].settings and (job.seed is None or not job.settings["do_sample"])
        ]
        return fitting[: self.max_batch]

    def _generate(self, batch: list[Job]) -> None:
        """Generate until every row is done, or the longest one has filled the model's positions.

        Rows are padded to the longest one, so that the others may have to go on in the next batch.
        """
        rows, device = [job.ids for job in batch], self.model.device
        length = max(len(row) for row in rows)
        ids = torch.full((len(batch), length), self.tokenizer.eos_token_id or 0)
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, length - len(row) :], mask[n, length - len(row) :] = row, 1

        def after_token(tokens: Tensor, scores: Any, **others: Any) -> Tensor:
            counts = [0.0] * len(batch) if self._evaluations is None else self._evaluations.tolist()
            for job, token, count in zip(batch, tokens[:, -1].tolist(), counts, strict=True):
                if not job.is_done:
                    job.add(token, count, self.tokenizer)
            return torch.tensor([job.is_done for job in batch], device=tokens.device)

        most = max(job.max_tokens - len(job.tokens) for job in batch)
        with torch.random.fork_rng(enabled=batch[0].seed is not None):
            if batch[0].seed is not None:
                torch.manual_seed(batch[0].seed)
            self.model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=min(most, max_length(self.model) - length),
                stopping_criteria=[after_token],
                eos_token_id=sorted(frozenset.union(*(job.ends for job in batch))) or None,
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

    def start(
        request: Request, ids: Tensor, max_tokens: int | None, *, is_chat: bool
    ) -> tuple[Job, asyncio.Queue[Any]]:
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
            prompt=ids,
            max_tokens=min(max_tokens or room, room),
            ends=engine.ends(is_chat=is_chat),
            stop=tuple(stop for stop in stops if stop),
            settings=request.settings() | used,
            seed=request.seed,
            emit=lambda event: loop.call_soon_threadsafe(events.put_nowait, event),
        )
        try:
            engine.submit(job)
        except queue.Full:
            raise HTTPException(503, f"{MAX_WAITING} requests are waiting already; try again later.") from None
        return job, events

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "attractor"}]}

    @app.post("/v1/completions")
    async def complete(request: CompletionRequest, connection: Connection) -> Any:
        from attractor.data.text.documents import repair

        ids = encode(loaded.tokenizer, repair(request.prompt))
        job, events = start(request, ids, request.max_tokens, is_chat=False)
        return await _respond(request, connection, job, events, kind="text_completion")

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest, connection: Connection) -> Any:
        ids = _chat_ids(loaded.tokenizer, request.messages)
        job, events = start(request, ids, request.max_completion_tokens or request.max_tokens, is_chat=True)
        return await _respond(request, connection, job, events, kind="chat.completion")

    _add_error_objects(app)
    return app


def _add_error_objects(app: FastAPI) -> None:
    """Let every error be answered as an error object of the API."""

    @app.exception_handler(RequestValidationError)
    async def refuse_fields(_: Any, error: Any) -> JSONResponse:
        first = error.errors()[0]
        return _error(400, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg'].lower()}.")

    @app.exception_handler(AttractorError)
    async def refuse(_: Any, error: Exception) -> JSONResponse:
        return _error(400, str(error))

    @app.exception_handler(HTTPException)
    async def refuse_other(_: Any, error: Any) -> JSONResponse:
        return _error(error.status_code, error.detail)


def _chat_ids(tokenizer: Any, messages: list[dict[str, Any]]) -> Tensor:
    """Return the tokens (T,) of a conversation in the tokenizer's chat template."""
    if not tokenizer.chat_template:
        raise ConfigError("this model's tokenizer has no chat template; use /v1/completions.")
    shown = [{**message, "content": _joined(message.get("content"))} for message in messages]
    ids = encode_rendered(tokenizer, render(tokenizer, shown, "messages", answer_follows=True))
    if not ids:
        raise ConfigError("messages: the chat template renders them to nothing.")
    return torch.tensor(ids)


def _joined(content: Any) -> Any:
    """Return the text of a content that is a list of parts, as some clients send it."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise ConfigError(
            "messages: this model reads text only; give contents as text, or as a list of parts of type text."
        )
    return "".join(part["text"] for part in content)


async def _respond(
    request: Request, connection: Connection, job: Job, events: "asyncio.Queue[Any]", *, kind: str
) -> Any:
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
    event: Any = None
    while event is not job:
        with suppress(TimeoutError):
            event = await asyncio.wait_for(events.get(), 1.0)
        job.is_cancelled = job.is_cancelled or await connection.is_disconnected()
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
