"""One measured generation: prompt in one block, compression where it is due, greedy decoding.

What is timed is the loop of the stepwise evaluator with absolute positions: before each token is fed,
a layer of at least `prune_after` keys is compressed. A prompt of that length or longer is therefore
compressed before the first token is handed out, and that time belongs to the time to first token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from knorm_core.arguments import asked_to_compress
from knorm_core.cache import apply_compressor, with_layers
from knorm_core.compressor import l2_compress
from knorm_core.counts import Eviction, cache_lengths, kept_count
from knorm_core.methods.anatomy import Anatomy
from knorm_core.methods.forward import cache_argument, position_argument

if TYPE_CHECKING:
    from transformers import DynamicCache

Clock = Callable[[], float]


@dataclass(frozen=True)
class Job:
    """What is generated, at every keep ratio: the prompt, how much follows, and how it is compressed.

    Attributes:
        model: a causal language model in evaluation mode.
        anatomy: the model as it is seen at the length of prompt and generated tokens.
        input_ids: the prompt, int64 (prompt_tokens,), on the model's device.
        prune_after: cache length in tokens from which a layer is compressed.
        new_tokens: tokens fed after the prompt, one at a time.
        compressor: a callable with the signature of `l2_compress`.
        clock: seconds, after the device has finished what was asked of it.
    """

    model: nn.Module
    anatomy: Anatomy
    input_ids: torch.Tensor
    prune_after: int
    new_tokens: int
    compressor: Callable[..., Any]
    clock: Clock

    @property
    def prompt_tokens(self) -> int:
        return len(self.input_ids)

    @cached_property
    def last_logits_only(self) -> dict[str, int]:
        """The argument that spares the logits of all but the last token, where the model takes it."""
        return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(self.model.forward).parameters else {}

    @property
    def sliding(self) -> Mapping[int, int]:
        """Window by layer index; these layers are never compressed."""
        return self.anatomy.windows

    def schedule(self, keep_ratio: float) -> tuple[Eviction, ...]:
        return generation_schedule(self.prompt_tokens, self.new_tokens, self.prune_after, keep_ratio)

    def planned_lengths(self, keep_ratio: float) -> tuple[int, ...]:
        """Cache length of a compressed layer: when the first token is out, then after each token fed."""
        schedule = self.schedule(keep_ratio)
        after_prompt = next((e.after for e in schedule if e.step == self.prompt_tokens), self.prompt_tokens)
        fed = self.prompt_tokens + self.new_tokens
        return after_prompt, *cache_lengths(fed + 1, self.prompt_tokens, schedule)


class FedPrompt(NamedTuple):
    """A prompt that has been fed: its cache, its next token (1, 1), and the seconds both took."""

    cache: DynamicCache
    token: torch.Tensor
    seconds: float


@dataclass(frozen=True)
class GenerationCost:
    """What one generation took; the fields of `LatencyRow` say what each number is."""

    ttft_seconds: float
    tokens_per_second: float
    compress_seconds: float
    cache_bytes_after_prefill: int
    cache_bytes_end: int
    cache_bytes_mean: float
    cache_bytes_peak: int
    peak_device_bytes: int | None


def generation_schedule(
    prompt_tokens: int, new_tokens: int, prune_after: int, keep_ratio: float
) -> tuple[Eviction, ...]:
    """Every eviction of a generation: before each token fed after the prompt, if the cache holds ``prune_after`` keys.

    >>> for eviction in generation_schedule(prompt_tokens=6, new_tokens=5, prune_after=4, keep_ratio=0.5):
    ...     print(eviction)
    Eviction(step=6, before=6, after=3)
    Eviction(step=7, before=4, after=2)
    Eviction(step=9, before=4, after=2)
    """
    evictions = []
    length = prompt_tokens
    for step in range(prompt_tokens, prompt_tokens + new_tokens):
        after = kept_count(length, keep_ratio) if length >= prune_after else length
        if after < length:
            evictions.append(Eviction(step, length, after))
        length = after + 1
    return tuple(evictions)


def device_clock() -> Clock:
    """The timer of `torch.utils.benchmark`: a wall clock in seconds that first waits for the device."""
    from torch.utils.benchmark.utils.timer import timer

    return timer


@torch.inference_mode()
def feed_prompt(job: Job) -> FedPrompt:
    """Feed the prompt in one block to a fresh cache (all layers are equally long, so the mask is right)."""
    from transformers import DynamicCache

    cache = DynamicCache(config=job.model.config) if job.sliding else DynamicCache()
    begin = job.clock()
    token = _next_token(job, job.input_ids[None], 0, cache)
    return FedPrompt(cache, token, job.clock() - begin)


@torch.inference_mode()
def generate(job: Job, keep_ratio: float, prompt: FedPrompt | None = None) -> GenerationCost:
    """Measure one generation at one keep ratio.

    Args:
        prompt: a prompt fed before, to leave its time to first token at what feeding it took then. Its
            cache is not modified. None: fed here.

    Raises:
        RuntimeError: the cache is not what the schedule says (with `l2_compress`), or the clock stands still.
    """
    device = job.input_ids.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    cache, token, prompt_seconds = prompt or feed_prompt(job)
    # Decoding makes a cache grow, and this one may be shared; the tensors in it are never written to.
    cache = with_layers(cache, [(layer.keys, layer.values) for layer in cache.layers])
    held = [cache_bytes(cache)]  # right after the prompt, before any compression: the peak of most runs
    compress = _compression(job, keep_ratio)

    # The clock is read at the same places in every row, the baseline's too, so that a device has to
    # finish its work equally often in all of them; the bookkeeping between two readings is not timed.
    begin = job.clock()
    cache = compress(cache)
    prompt_compressed = job.clock() - begin
    compress_seconds = prompt_compressed
    held.append(cache_bytes(cache))
    lengths = [_lengths(cache)]
    decode_seconds = 0.0
    for step in range(job.new_tokens):
        begin = compressed = job.clock()
        if step:  # before the first one it has been done, and counted in the time to first token
            cache = compress(cache)
            compressed = job.clock()
        token = _next_token(job, token, job.prompt_tokens + step, cache)
        decode_seconds += job.clock() - begin
        compress_seconds += compressed - begin
        held.append(cache_bytes(cache))
        lengths.append(_lengths(cache))

    if job.compressor is l2_compress:
        _check_cache(job, keep_ratio, cache, lengths, held)
    if decode_seconds <= 0:
        raise RuntimeError(f"the clock did not advance while {job.new_tokens} tokens were decoded")
    return GenerationCost(
        ttft_seconds=prompt_seconds + prompt_compressed,
        tokens_per_second=job.new_tokens / decode_seconds,
        compress_seconds=compress_seconds if asked_to_compress(keep_ratio) else 0.0,
        cache_bytes_after_prefill=held[1],
        cache_bytes_end=held[-1],
        cache_bytes_mean=fmean(held[2:]),
        cache_bytes_peak=max(held),
        peak_device_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes of memory that the keys and values of a cache hold on to.

    Read off the storages: a tensor that is a slice of a longer one keeps all of it alive.
    """
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    }
    return sum(storages.values())


def bytes_per_token(cache: DynamicCache) -> int:
    """layers × kv_heads × head_dim × 2 × element size, read off the tensors of one text's cache."""
    return sum(
        tensor.shape[1] * tensor.shape[3] * tensor.element_size()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    )


def _next_token(job: Job, fed: torch.Tensor, position: int, cache: DynamicCache) -> torch.Tensor:
    """Feed (1, count) tokens, from ``position`` of the text on; the likeliest next one, (1, 1), left on the device."""
    first = job.anatomy.first_position + position
    positions = torch.arange(first, first + fed.shape[1], device=fed.device)
    given = position_argument(job.model, positions) | cache_argument(job.model, cache) | job.last_logits_only
    output = job.model(input_ids=fed, use_cache=True, **given)
    return output.logits[:, -1:].argmax(dim=-1)


def _compression(job: Job, keep_ratio: float) -> Callable[[DynamicCache], DynamicCache]:
    """The compressor as a function of the cache; at keep ratio 1, the baseline, none is called."""
    if not asked_to_compress(keep_ratio):
        return lambda cache: cache
    arguments: Mapping[str, Any] = {"keep_ratio": keep_ratio, "prune_after": job.prune_after}
    sliding = job.sliding
    if not sliding and job.compressor is l2_compress:
        return lambda cache: l2_compress(cache, **arguments)
    if not sliding:
        return lambda cache: apply_compressor(job.compressor, cache, **arguments)

    def compress(cache: DynamicCache) -> DynamicCache:
        pairs = [(layer.keys, layer.values) for layer in cache.layers]
        full = [layer for layer in range(len(pairs)) if layer not in sliding]
        for layer, pair in zip(full, job.compressor([pairs[layer] for layer in full], **arguments), strict=True):
            pairs[layer] = pair
        return with_layers(cache, pairs)

    return compress


def _lengths(cache: DynamicCache) -> list[int]:
    return [layer.keys.shape[-2] for layer in cache.layers]


def _check_cache(job: Job, keep_ratio: float, cache: DynamicCache, lengths: list[list[int]], held: list[int]) -> None:
    planned = job.planned_lengths(keep_ratio)
    for step, (expected, got) in enumerate(zip(planned, lengths, strict=True)):
        wrong = [layer for layer, length in enumerate(got) if layer not in job.sliding and length != expected]
        if wrong:
            raise RuntimeError(
                f"keep_ratio={keep_ratio}: {step} tokens after the prompt the schedule has {expected} keys in each "
                f"layer, but layer {wrong[0]} holds {got[wrong[0]]}"
            )
    expected_bytes = [length * bytes_per_token(cache) for length in planned]
    if not job.sliding and held[1:] != expected_bytes:
        raise RuntimeError(
            f"keep_ratio={keep_ratio}: the cache holds {held[1:]} bytes after the prompt and each token, "
            f"but its keys and values take {expected_bytes}"
        )
