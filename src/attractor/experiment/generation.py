"""Continue a prompt with a language model, or answer in a conversation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attractor.config import config_class, require_whole
from attractor.errors import AttractorError, ConfigError
from attractor.evaluation.text import effective_budget, encode, known_budget, max_length
from attractor.files import first_line
from attractor.nn import input_device


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A prompt with its continuation, or an answer.

    Attributes
    ----------
    num_tokens, seconds
        The number of new tokens, and the time they took.
    evaluations
        The mean number of evaluations that led to a new token; None for models that solve nothing.
    """

    text: str
    num_tokens: int
    seconds: float
    is_context_full: bool
    evaluations: float | None


@dataclass
class KeptCache:
    """Keys and values of a conversation's tokens ``ids`` (T,), from which :func:`answer` continues."""

    ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    cache: Any = None

    def take(self, model: Any, ids: Tensor) -> dict[str, Any]:
        """Return the argument for ``model.generate`` with the tokens that ``ids`` (T,) begins with, but never all of them."""
        from transformers import DynamicCache

        from attractor.models.language import LanguageModel

        if not isinstance(model, LanguageModel):  # other families may need caches of their own
            return {}
        size = min(len(ids) - 1, len(self.ids))
        num_equal = int((ids[:size] == self.ids[:size]).long().cumprod(0).sum())
        cache, surplus = (self.cache, len(self.ids) - num_equal) if num_equal else (DynamicCache(), 0)
        if surplus:
            cache.crop(-surplus)
        self.ids = ids[:0]  # an error in the call would leave the cache half-written
        return {"cache": cache}


@config_class
class Sampling:
    """How the next token is chosen, see :func:`generate`."""

    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95

    def __post_init__(self) -> None:
        require_whole(self, 1, "max_new_tokens")
        require_whole(self, 0, "top_k")
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"temperature={self.temperature:g}, top_p={self.top_p:g}: give a temperature from 0 up and a top_p in (0, 1]."
            )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for ``model.generate``."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


def describe_budget(model: Any, **given: float | None) -> str:
    """Return in words how many evaluations a call with the arguments ``given`` makes, and where that is set."""
    budget = effective_budget(model, given)
    words = [f"{name.replace('_', ' ')} {value:g}" for name, value in budget.items()] or ["nothing is solved"]
    is_own = budget and all(value is None for value in given.values())
    if is_own and model.config.budget:
        words.append("stored in the checkpoint")
    elif "tolerance" in budget and given.get("tolerance") is None and budget["tolerance"] > model.config.tolerance:
        words.append(f"which {str(model.dtype).removeprefix('torch.')} can reach")
    return ", ".join(words)


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    seed: int = 0,
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
    streamer: Any = None,
    **sampling: Any,
) -> Generation:
    """Continue ``prompt`` until the text ends, enough tokens are added, or the context of the model is full.

    Parameters
    ----------
    seed
        The seed of the choices. The random state of the process stays as it is.
    depth, tolerance, max_evaluations
        The budget of each token's solve: exactly ``depth`` evaluations, or until the residual is below ``tolerance``
        with at most ``max_evaluations``. By default the model's own.
    streamer
        A streamer of ``transformers`` that receives the tokens one by one.
    sampling
        ``max_new_tokens`` (200), ``temperature`` (0.8; 0 always takes the most probable token), ``top_k`` (50; 0 means
        all), ``top_p`` (0.95).

    Raises
    ------
    ConfigError
        If a setting, also of the generation config, is invalid, the model does not have it, or the prompt does not fit
        into the context.
    """
    from attractor.data.text.documents import repair

    ids = encode(tokenizer, repair(prompt))
    budget = {"depth": depth, "tolerance": tolerance, "max_evaluations": max_evaluations}
    return _continue(model, tokenizer, ids, Sampling(**sampling), budget, seed=seed, streamer=streamer)


def answer(
    model: Any,
    tokenizer: Any,
    messages: list[dict[str, str]],
    *,
    seed: int = 0,
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
    streamer: Any = None,
    kept: KeptCache | None = None,
    **sampling: Any,
) -> Generation:
    """Return the assistant's next answer in a conversation, ``{"role", "content"}`` each, under the chat template.

    With ``kept``, only the tokens after those of the last call with it are read; use it with one model and budget. Other
    arguments and errors are those of :func:`generate`. Raises DataError if the tokenizer has no chat template, or the
    template refuses the conversation.
    """
    from attractor.data.text import encode_rendered, end_of_turn, render

    ids = torch.tensor(encode_rendered(tokenizer, render(tokenizer, messages, "chat", answer_follows=True)))
    budget = {"depth": depth, "tolerance": tolerance, "max_evaluations": max_evaluations}
    stops = {end_of_turn(tokenizer), *_as_list(model.generation_config.eos_token_id)} - {None}
    more = {"seed": seed, "streamer": streamer, "kept": kept, "eos_token_id": sorted(stops) or None}
    return _continue(model, tokenizer, ids, Sampling(**sampling), budget, is_answer=True, **more)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _continue(
    model: Any,
    tokenizer: Any,
    ids: Tensor,
    chosen: Sampling,
    budget: dict[str, float | None],
    *,
    seed: int,
    streamer: Any,
    is_answer: bool = False,
    kept: KeptCache | None = None,
    **settings: Any,
) -> Generation:
    """Return the tokens ``ids`` (T,) with their continuation; with ``is_answer`` the continuation alone."""
    device = input_device(model)
    available = max_length(model) - len(ids)
    if available < 1:
        raise ConfigError(f"the prompt has {len(ids)} tokens and the model reads {max_length(model)}; shorten it.")
    known = known_budget(model, budget)
    counts = list[Tensor]()
    if kept is not None:
        settings |= kept.take(model, ids)

    def count(module: Any, arguments: Any, output: Any) -> None:
        if (solution := getattr(output, "solution", None)) is not None:  # models of transformers have none
            counts.append(solution.evaluations[0, -1])

    hook = model.register_forward_hook(count)
    begun = time.perf_counter()
    try:
        with _reported(streamer), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            output = model.generate(
                ids[None].to(device),
                # Or an end-of-text token in the prompt may count as padding.
                attention_mask=torch.ones_like(ids[None], device=device),
                max_new_tokens=min(chosen.max_new_tokens, available),
                streamer=streamer,
                pad_token_id=tokenizer.eos_token_id,
                **settings,
                **chosen.arguments(),
                **known,
            )[0]
    finally:
        hook.remove()
    if kept is not None:
        kept.ids, kept.cache = output[:-1].cpu(), settings.get("cache")  # the last token has not been read
    num_tokens, shown = len(output) - len(ids), output[len(ids) :] if is_answer else output
    return Generation(
        text=tokenizer.decode(shown, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        num_tokens=num_tokens,
        seconds=time.perf_counter() - begun,
        is_context_full=num_tokens == available < chosen.max_new_tokens,
        evaluations=float(torch.stack(counts).double().mean()) if counts else None,
    )


@contextmanager
def _reported(streamer: Any) -> Iterator[None]:
    """Let an error that the library raises be one sentence, on a line of its own."""
    try:
        yield
    except AttractorError:
        raise
    except (TypeError, ValueError, IndexError) as error:  # the library checks few of its settings
        if streamer is not None:
            streamer.end()  # what was written ends its line before the sentence begins
        raise ConfigError(
            f"the model cannot generate ({first_line(error)}); check its generation_config.json."
        ) from error
