"""Public implementations of KV-cache eviction, and for each the few lines that make it a compressor or evaluator.

What scores with queries is given the keys as queries, and attention weights are those of keys on keys: what a
check compares is then decided by the cache alone, row by row and head by head.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from transformers import DynamicCache

from knorm_core.contract import EvaluatorClaims, as_compressor, as_evaluator, each_layer, for_budget, kvpress_count
from knorm_core.contract.adapters import UNGATED
from knorm_core.contract.cases import layers_of
from suites.wild.clones import Source, load


@dataclass(frozen=True)
class Implementation:
    """One compressor or evaluator of a public repository.

    Attributes:
        name: its function or class.
        method: the method, in the field's word for it.
        source: where it is.
        adapt: from the imported module to what the checks take.
        says: what it says of itself, in so far as it is less than everything (the claims).
        read: every check that finds something, and the lines of their code that it was read off.
    """

    name: str
    method: str
    source: Source
    adapt: Callable[[ModuleType], Any]
    says: str
    read: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Repository and name."""
        return f"{self.source.folder}: {self.name}"

    def subject(self, clones: Path) -> Any:
        """What the checks take, from the user's clone."""
        subject = self.adapt(load(self.source, clones))
        return replace(subject, name=self.name)


REPORT = "od-liu/CS3602-LLM-Inference-Acceleration", "ae583008acd42685e7fd4f3ddc5b0f848c56100d"
FACTORY = Source(
    "Zefan-Cai/KVCache-Factory",
    "c97f9d706d63d1b56e980f8b81b2a924c21162b3",
    "pyramidkv/pyramidkv_utils.py",
    "a8a1e8139a8c24a03df87ba0b8362296a613a7b7a38dd4a026087d7ac2b37ce4",
)
PREFILL = "one budget for the whole prefill: no prune_after, no skip_layers"
BY_NORM = replace(UNGATED, key_norm=True, refuses_ratio=True, refuses_nan=True)


def cluster(make: Callable[[int], Any]) -> Any:
    """``update_kv(keys, queries, values, mask, groups)`` of an object made for a budget, layer by layer."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        return make(kept).update_kv(keys, keys, values, None, 1)

    return each_layer(compress)


def attention(keys: torch.Tensor) -> torch.Tensor:
    """Causal attention weights of keys on keys: (batch, heads, length, length)."""
    scores = keys @ keys.transpose(2, 3) / keys.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(dim=-1)


def streaming(module: ModuleType) -> Any:
    """The cache of streaming-llm with half of the budget for the start."""

    def make(kept: int) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return module.StartRecentKVCache(start_size=kept // 2, recent_size=kept - kept // 2)

    return for_budget(make)


def heavy_hitters(module: ModuleType) -> Any:
    """H2O's cache of a layer, half of the budget for heavy hitters."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            cache = module.H2OKVCache_LayerWise(hh_size=kept // 2, recent_size=kept - kept // 2)
        return cache((keys, values), attention(keys))

    return each_layer(compress)


def tova(module: ModuleType) -> Any:
    """TOVA's cache, whose reduce() is called after the last token has been fed."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        cache = module.TOVACache(kept)
        cache.key_cache, cache.value_cache = [keys], [values]
        cache.reduce(0, attention(keys))
        return cache.key_cache[0], cache.value_cache[0]

    return each_layer(compress)


def key_norm_cache(module: ModuleType) -> Any:
    """The key-norm cache of Q-Filters without a window: update() compresses what it is given."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        cache = object.__new__(module.KNormCache)  # its base wants other arguments since transformers 5
        cache.key_cache, cache.value_cache = [keys[:, :, :-1]], [values[:, :, :-1]]
        cache.max_length, cache.window_length = kept, 0
        return cache.update(keys[:, :, -1:], values[:, :, -1:], 0)

    return each_layer(compress, claims=BY_NORM)


def cold_compress(module: ModuleType) -> Any:
    """cold-compress's cache of a layer: filled with the first tokens, then fed the others one by one."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        batch, heads, length, width = keys.shape
        cache = module.KVCacheL2(
            batch, heads, width, keys.dtype,
            max_cache_length=kept, max_seq_length=length, cache_bits=None, global_tokens=0, recent_window=0,
        )  # fmt: skip
        first = torch.arange(kept)
        cache.update_kv(first, keys[:, :, :kept], values[:, :, :kept], is_prefill=True)
        cache.update_state(first, keys[:, :, :kept], values[:, :, :kept], is_prefill=True, attn=None)
        for token in range(kept, length):
            position = torch.tensor([token])
            cache.update_kv(position, keys[:, :, token : token + 1], values[:, :, token : token + 1], is_prefill=False)
        return cache.k_cache, cache.v_cache

    return each_layer(compress, claims=BY_NORM)


def prompt_compressor(module: ModuleType) -> Any:
    """cold-compress's compressor of the prompt, without its protected tokens."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        made = module.PromptCompressorL2(True, max_cache_length=kept, global_tokens=0, recent_window=0)
        _, keys, values, _ = made(torch.arange(keys.shape[2]), keys, values)
        return keys, values

    return each_layer(compress, claims=BY_NORM)


def press(module: ModuleType) -> Any:
    """``compress`` of kvpress's KnormPress, which needs no model."""

    def compress(past_key_values: Any, keep_ratio: float) -> Any:
        made = module.KnormPress(compression_ratio=1 - keep_ratio)
        return [
            made.compress(SimpleNamespace(head_dim=keys.shape[-1]), None, keys, values, None, {})
            for keys, values in past_key_values
        ]

    claims = replace(BY_NORM, count=kvpress_count)
    return as_compressor(compress, claims)


def two_phases(module: ModuleType) -> Any:
    """The report's loop, its losses caught where it computes them; transformers 5 has no to_legacy_cache."""

    def losses(model: Any, input_ids: torch.Tensor, keep_ratio: float, prune_after: int) -> list[torch.Tensor]:
        caught = []

        def cross_entropy(logits: torch.Tensor, target: torch.Tensor, reduction: str) -> torch.Tensor:
            caught.append(torch.nn.functional.cross_entropy(logits, target, reduction=reduction))
            return caught[-1]

        functional = SimpleNamespace(functional=SimpleNamespace(cross_entropy=cross_entropy))
        module.torch = SimpleNamespace(**vars(torch) | {"nn": functional})
        tokenizer = SimpleNamespace(encode=lambda text, return_tensors: input_ids[None])
        DynamicCache.to_legacy_cache = lambda cache: tuple(layers_of(cache))
        try:
            module.calculate_ppl_with_method(
                model, tokenizer, "", keep_ratio, "knorm", prune_after, device=input_ids.device
            )
        finally:
            del DynamicCache.to_legacy_cache
            module.torch = torch
        return caught

    return as_evaluator(losses, EvaluatorClaims(skip_layers=(0,)))


IMPLEMENTATIONS = (
    Implementation(
        "l2_compress",
        "key norm",
        Source(
            "alessiodevoto/l2compress",
            "f93d6ca2702d85a2db97d2ef350b44d955609761",
            "cache.py",
            "9d8ec8b0428fe473fc4635a7b428d098288b99e8380831b675d60c96c5c314b9",
        ),
        lambda module: as_compressor(module.l2_compress),
        "everything",
        {
            "takes_short_layers": "45-46",
            "senseless_ratio_is_refused": "39",
            "keeps_the_declared_count": "39",
            "keeps_temporal_order": "45-53",
            "values_may_be_wider_or_narrower": "46-50",
            "ratio_one_changes_nothing": "45-53",
            "evicted_memory_is_freed": "53",
            "equal_norms_keep_the_earlier": "45",
            "rounding_noise_decides_nothing": "42-45",
            "low_precision_keys_are_scored_in_float32": "42",
            "nan_is_refused": "45",
        },
    ),
    Implementation(
        "l2_compress",
        "key norm",
        Source(*REPORT, "kv_compress.py", "fd5f7c3a7aca3e991dd4e0b1fbe905ba4e2d9ef2cb9005c8048320c12d9f3a42"),
        lambda module: as_compressor(module.l2_compress),
        "everything",
        {
            "senseless_ratio_is_refused": "71",
            "keeps_the_declared_count": "71",
            "values_may_be_wider_or_narrower": "101-108",
            "equal_norms_keep_the_earlier": "88",
            "rounding_noise_decides_nothing": "83-88",
            "low_precision_keys_are_scored_in_float32": "83",
            "nan_is_refused": "88",
        },
    ),
    Implementation(
        "calculate_ppl_with_method",
        "two-phase evaluation of key norm",
        Source(*REPORT, "compare_methods.py", "5fa391a98ae2b8b6349575f7bbf003078716eabc64dcf0e3a474d0bd2a18d78d"),
        two_phases,
        "layer 0 is skipped",
        {
            "takes_short_texts": "115-118",
            "compresses_before_feeding": "132-164",
            "model_is_left_as_it_was": "124",
        },
    ),
    Implementation(
        "KnormPress",
        "key norm",
        Source(
            "NVIDIA/kvpress",
            "0.5.5",
            "kvpress/presses/knorm_press.py",
            "",
            distribution="kvpress",
        ),
        press,
        PREFILL + "; kvpress's count",
        {
            "keeps_temporal_order": "kvpress/presses/scorer_press.py:96",
            "values_may_be_wider_or_narrower": "kvpress/presses/scorer_press.py:97-101",
            "equal_norms_keep_the_earlier": "kvpress/presses/scorer_press.py:96",
            "rounding_noise_decides_nothing": "45-46",
            "nan_is_refused": "kvpress/presses/scorer_press.py:96",
        },
    ),
    Implementation(
        "L2NormCluster",
        "key norm",
        FACTORY,
        lambda module: replace(cluster(module.L2NormCluster), claims=BY_NORM),
        PREFILL,
        {
            "takes_short_layers": "641-642",
            "keeps_temporal_order": "641-648",
            "values_may_be_wider_or_narrower": "642-645",
            "ratio_one_changes_nothing": "634-648",
            "evicted_memory_is_freed": "647-648",
            "equal_norms_keep_the_earlier": "641",
            "rounding_noise_decides_nothing": "640-641",
            "low_precision_keys_are_scored_in_float32": "640",
            "nan_is_refused": "641",
        },
    ),
    Implementation(
        "SnapKVCluster",
        "SnapKV",
        FACTORY,
        lambda module: cluster(lambda kept: module.SnapKVCluster(window_size=2, max_capacity_prompt=kept)),
        PREFILL,
        {
            "keeps_as_few_as_asked": "476",
            "takes_every_float_dtype": "510-511",
            "keeps_temporal_order": "526-538",
            "values_may_be_wider_or_narrower": "527-538",
            "ratio_one_changes_nothing": "506-538",
        },
    ),
    Implementation(
        "H2OKVCluster",
        "H2O",
        FACTORY,
        lambda module: cluster(lambda kept: module.H2OKVCluster(window_size=2, max_capacity_prompt=kept)),
        PREFILL,
        {
            "keeps_as_few_as_asked": "801",
            "takes_every_float_dtype": "831",
            "keeps_temporal_order": "848-859",
            "values_may_be_wider_or_narrower": "849-860",
            "ratio_one_changes_nothing": "827-859",
        },
    ),
    Implementation(
        "StreamingLLMKVCluster",
        "sinks and newest",
        FACTORY,
        lambda module: cluster(lambda kept: module.StreamingLLMKVCluster(window_size=2, max_capacity_prompt=kept)),
        PREFILL,
        {
            "keeps_as_few_as_asked": "897",
            "values_may_be_wider_or_narrower": "931-942",
        },
    ),
    Implementation(
        "KVCacheL2",
        "key norm",
        Source(
            "AnswerDotAI/cold-compress",
            "15bb3005c5661e0d97e295c71c6e5fced1a863cc",
            "cache.py",
            "cd61b67eded9f2e9599b30616932e73e28d54cc9810edff5fda13fcb4a9d0ad3",
        ),
        cold_compress,
        "a fixed budget, kept while tokens are fed",
        {
            "takes_several_rows": "582-586",
            "keeps_temporal_order": "582-589",
            "values_may_be_wider_or_narrower": "178-186",
            "equal_norms_keep_the_earlier": "379",
            "rounding_noise_decides_nothing": "592-605",
            "low_precision_keys_are_scored_in_float32": "574-592",
            "position_decides_nothing": "582-589",
            "nan_is_refused": "379",
        },
    ),
    Implementation(
        "PromptCompressorL2",
        "key norm",
        Source(
            "AnswerDotAI/cold-compress",
            "15bb3005c5661e0d97e295c71c6e5fced1a863cc",
            "prompt_compression.py",
            "277b3e0ec4f0c6ea574bd4d9d88748f2ec8e416b2e7b602e76ac99271d188efa",
        ),
        prompt_compressor,
        PREFILL,
        {
            "takes_several_rows": "83-86",
            "values_may_be_wider_or_narrower": "83-87",
            "equal_norms_keep_the_earlier": "23",
            "rounding_noise_decides_nothing": "203",
            "low_precision_keys_are_scored_in_float32": "203",
            "nan_is_refused": "23",
        },
    ),
    Implementation(
        "StartRecentKVCache",
        "sinks and newest",
        Source(
            "mit-han-lab/streaming-llm",
            "2e5042606d69933d88fbf909bd77907456b9b4dd",
            "streaming_llm/kv_cache.py",
            "9264553f7046c026b02848fc192710e6d737cb7e08aa45a01ddf43d59ea6e8fb",
        ),
        streaming,
        "a fixed budget for layers of equal length",
    ),
    Implementation(
        "H2OKVCache_LayerWise",
        "H2O",
        Source(
            "FMInference/H2O",
            "ac75c2a8a9e76832b2a4139b9363373b56336bfb",
            "h2o_hf/utils_real_drop/modify_llama.py",
            "c20cfc046c89db86e21430c1efeb4a9c4a99328037d3cd66887399dba83c246d",
        ),
        heavy_hitters,
        "a fixed budget",
        {
            "takes_several_rows": "282-283",
            "values_may_be_wider_or_narrower": "269-283",
        },
    ),
    Implementation(
        "SnapKVCluster",
        "SnapKV",
        Source(
            "FasterDecoding/SnapKV",
            "e216ddc84c5bd210378cbdbbba12ba02102aa640",
            "snapkv/monkeypatch/snapkv_utils.py",
            "d7eddeaf361d9d38be991be734752c831b09f9c95a6e777ac17e7262ca2b4cf5",
        ),
        lambda module: cluster(lambda kept: module.SnapKVCluster(window_size=2, max_capacity_prompt=kept)),
        PREFILL,
        {
            "keeps_as_few_as_asked": "27",
            "takes_every_float_dtype": "46",
            "keeps_temporal_order": "62-69",
            "values_may_be_wider_or_narrower": "63-69",
            "ratio_one_changes_nothing": "42-69",
        },
    ),
    Implementation(
        "TOVACache",
        "TOVA",
        Source(
            "schwartz-lab-NLP/TOVA",
            "9c7d09bfff64cfc92cfb5f9d7e138cb04866e5a7",
            "src/tova_cache.py",
            "43d4736670ed5b61651c31853104756fc87f53cbcac750f4baf1186a67656329",
        ),
        tova,
        "a fixed budget",
        {
            "values_may_be_wider_or_narrower": "47-51",
        },
    ),
    Implementation(
        "KNormCache",
        "key norm",
        Source(
            "NathanGodey/qfilters",
            "cda5c38d3aa3f11815cf991661be80cb4f345815",
            "src/hf_cache.py",
            "edb8dd0287c5594f13c000bae4c285f72255aec4f12b2af3ac598e04ba07eec5",
        ),
        key_norm_cache,
        "a fixed budget",
        {
            "values_may_be_wider_or_narrower": "93-99",
            "equal_norms_keep_the_earlier": "92",
            "rounding_noise_decides_nothing": "91-92",
            "low_precision_keys_are_scored_in_float32": "91",
            "nan_is_refused": "92",
        },
    ),
)
