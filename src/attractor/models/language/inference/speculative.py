"""Self-speculative decoding: the proposal drafts a few tokens, one solve over all of them verifies, and nothing is lost.

Drafts come from the backbone alone (``draft_depth=0``) or from one evaluation (``1``). The solve starts from the proposals that
drafting has computed already, so that verifying costs no backbone. Tokens are accepted so that the text, or its distribution
where it is sampled, is that of decoding at the equilibrium one by one (Leviathan et al., arXiv:2211.17192).
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from attractor.errors import ConfigError
from attractor.models.language.inference.context import AttentionContext
from attractor.nn.transformer import make_attention_mask, rotary


def speculate(
    model: Any,
    input_ids: Tensor,
    *,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    num_draft: int,
    draft_depth: int,
    streamer: Any = None,
    **inputs: Any,
) -> Tensor:
    """Continue ``input_ids`` (1, T): a decoding method for ``generate``, see :meth:`AttractorForCausalLM.generate`."""
    budget = {name: inputs.get(name) for name in ("tolerance", "max_evaluations")}
    _refuse(model, input_ids, generation_config, num_draft, draft_depth, inputs)
    stop = model._stop(depth=None, **budget) or model._trained_stop(is_padded=False)
    cache, sampling, ids = DynamicCache(), generation_config.do_sample, input_ids
    first = model(ids, cache=cache, logits_to_keep=1, **budget).logits[:, -1]
    new = _pick(_distribution(logits_processor, ids, first, sampling))
    while True:
        for token in new.split(1, dim=1):
            ids = torch.cat([ids, token], dim=1)
            if streamer is not None:
                streamer.put(token[0].cpu())
            if bool(stopping_criteria(ids, None).all()):
                if streamer is not None:
                    streamer.end()
                return ids
        num = min(num_draft, generation_config.max_length - ids.shape[1])
        past = ids.shape[1] - 1  # the last token is not read yet
        model._require_room(past, num)
        drafts, wished, proposals = _draft(model, ids, cache, num, draft_depth, logits_processor, sampling)
        solved = model.solve(proposals, _context(model, past, num, cache), stop).value
        logits = model.lm_head(model.model.norm(solved))
        text = torch.cat([ids, drafts], dim=1)
        wanted = [
            _distribution(logits_processor, text[:, : ids.shape[1] + i], logits[:, i], sampling) for i in range(num)
        ]
        new = verify(torch.cat(wanted), torch.cat(wished), drafts[0])[None]
        _crop(cache, num - new.shape[1])  # read, and not part of the text


def verify(wanted: Tensor, wished: Tensor, drafts: Tensor) -> Tensor:
    """Return the drafts that stand and, after them, the token that replaces the first that falls; at most n tokens.

    Parameters
    ----------
    wanted, wished
        (n, V): the distributions that tokens are to have, and those that the drafts were drawn from.
    drafts
        (n,).
    """
    place = torch.arange(len(drafts), device=drafts.device)
    stands = torch.rand(len(drafts), device=drafts.device) * wished[place, drafts] < wanted[place, drafts]
    num = int(stands.long().cumprod(dim=0).sum())
    if num == len(drafts):
        return drafts
    rest = (wanted[num] - wished[num]).clamp_min(0)
    return torch.cat([drafts[:num], torch.multinomial(rest, 1)])


def _draft(
    model: Any, ids: Tensor, cache: DynamicCache, num: int, depth: int, processor: Any, sampling: bool
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return drafts (1, num), their distributions and the proposals (1, num, D); the backbone's slots of the cache are filled."""
    start, proposals, wished = ids.shape[1], [], []
    for place in range(start - 1, start - 1 + num):
        context = _context(model, place, 1, cache)
        proposal = model.model.run(model.model.embed_tokens(ids[:, -1:]), context, 0, model.num_backbone_layers)
        y = model.update(proposal, context)(proposal) if depth else proposal
        distribution = _distribution(processor, ids, model.lm_head(model.model.norm(y))[:, -1], sampling)
        ids = torch.cat([ids, _pick(distribution)], dim=1)
        proposals.append(proposal)
        wished.append(distribution)
    if depth:  # keys and values of the proposals make room for those of the equilibrium
        _crop(cache, num, first=model.num_backbone_layers)
    return ids[:, start:], wished, torch.cat(proposals, dim=1)


def _crop(cache: DynamicCache, num: int, first: int = 0) -> None:
    layers: Any = cache.layers[first:]
    for layer in layers:
        layer.crop(-num)


def _context(model: Any, past: int, length: int, cache: DynamicCache) -> AttentionContext:
    positions = torch.arange(past, past + length, device=model.device)[None]
    return AttentionContext(
        rotary=rotary(positions, model.config.head_width, model.config.rope_theta),
        mask=make_attention_mask(length, past + length, past),
        is_real=None,
        cache=cache,
        past=past,
    )


def _distribution(processor: Any, ids: Tensor, logits: Tensor, sampling: bool) -> Tensor:
    """Return the probabilities (1, V) of the next token; greedy decoding is certain of one."""
    scores = processor(ids, logits.float())
    if sampling:
        return scores.softmax(dim=-1)
    return torch.zeros_like(scores).scatter_(1, scores.argmax(dim=-1, keepdim=True), 1.0)


def _pick(distribution: Tensor) -> Tensor:
    return torch.multinomial(distribution, 1)


def _refuse(model: Any, ids: Tensor, config: Any, num_draft: int, draft_depth: int, inputs: dict[str, Any]) -> None:
    if type(num_draft) is not int or num_draft < 1 or draft_depth not in (0, 1):
        raise ConfigError(
            f"num_draft={num_draft}, draft_depth={draft_depth}: draft at least one token, at depth 0 or 1."
        )
    if not model.config.num_attractor_layers or model.config.start != "proposal":
        raise ConfigError("num_draft: only what is solved from a proposal has drafts to verify; leave out num_draft.")
    if inputs.get("depth") is not None:
        raise ConfigError(
            "num_draft: a fixed depth, given or stored, solves nothing to verify by; give tolerance, or no num_draft."
        )
    mask = inputs.get("attention_mask")
    if len(ids) > 1 or config.num_beams > 1 or (mask is not None and not bool(mask.all())):
        raise ConfigError("num_draft: drafts are for one text at a time, without padding or beams.")
    if config.guidance_scale not in (None, 1) or config.return_dict_in_generate:
        raise ConfigError(
            "num_draft: drafts go without guidance_scale and return_dict_in_generate; leave out num_draft."
        )
    if getattr(inputs.get("cache"), "_is_user_defined", False) or "inputs_embeds" in inputs:
        raise ConfigError("num_draft: drafts start from token ids and a cache of their own; leave out num_draft.")
