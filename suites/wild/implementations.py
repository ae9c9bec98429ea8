"""Public implementations of KV-cache eviction: where each is, what it claims, and where its findings were read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from knorm_core.contract import as_compressor
from suites.wild.adapters import (
    BY_NORM,
    cake_decoding,
    cluster,
    cold_compress,
    fed_token_by_token,
    grouped_snapkv,
    heavy_hitters,
    key_norm_by_lag,
    key_norm_cache,
    press,
    prompt_compressor,
    redundancy,
    sinks_and_window,
    streaming,
    tova,
    two_phases,
)
from suites.wild.clones import Source, load


@dataclass(frozen=True, eq=False)
class Implementation:
    """One compressor or evaluator of a public repository; no two are equal, so that findings are kept by it.

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
KEYS_VALUES = "awslabs/keys_values", "a34f07ddee469e788d110374b90a599a4d79bb5e"
PREFILL = "one budget for the whole prefill: no prune_after, no skip_layers"

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
    Implementation(
        "AttentionSinkKVCache",
        "sinks and newest",
        Source(
            "tomaarsen/attention_sinks",
            "d79f4d8bd2a4e4994bc3dfbbee5ff5ac217c62d0",
            "attention_sinks/attention_sink_kv_cache.py",
            "44fdce855ac0cb84f096f1bfed3e2a4d3ca4bc42bbdf494355b561e11bfdc9da",
            root="attention_sinks",
        ),
        sinks_and_window,
        "a fixed budget for layers of equal length",
    ),
    Implementation(
        "L2KV",
        "key norm, window by window",
        Source(
            "AI-Lab-China-Merchants-Bank/LagKV",
            "2a9d19e7d17dbf49c5c596d2980ef0728ea121ec",
            "l2_kv.py",
            "e09f20adda2226952d7250bb9008d69105f8586933e551d7437fb20411e01016",
        ),
        key_norm_by_lag,
        "a share of each window: no count rule, no prune_after, no skip_layers",
        {
            "keeps_temporal_order": "113-128",
            "values_may_be_wider_or_narrower": "116-128",
            "ratio_one_changes_nothing": "113-128",
            "input_is_left_alone": "124-128",
            "evicted_memory_is_freed": "127",
        },
    ),
    Implementation(
        "CakeDecodingKVCache_LayerWise",
        "CAKE",
        Source(
            "antgroup/cakekv",
            "c4675ce21b1d6f62d262f9a8dc0ad1e1e8ee4edd",
            "cake/cake_cache.py",
            "99f9742e6d73c372b6125605d54d0047b915f436c21967e16bbf1717b8067341",
            missing=("transformers.cache_utils.HybridCache",),
        ),
        cake_decoding,
        "a fixed budget",
        {
            "keeps_as_few_as_asked": "310",
            "keeps_temporal_order": "310-319",
            "values_may_be_wider_or_narrower": "312-319",
        },
    ),
    Implementation(
        "SnapKVCluster",
        "SnapKV, for grouped queries",
        Source(
            "FFY0/AdaKV",
            "efe4e2eea0099bf497f0c175ac5440a915d89f83",
            "adaptive_snapkv/monkeypatch/snapkv_utils.py",
            "16ae10649a54fd5dad7d8a177d153d6d23096ff65b3061b07801155a658d14be",
            stubs=("flash_attn",),
        ),
        grouped_snapkv,
        PREFILL + "; gqa_support off, as by default",
        {
            "returns_a_cache": "217-218",
            "keeps_as_few_as_asked": "185",
            "takes_every_float_dtype": "250",
            "keeps_temporal_order": "278-293",
            "values_may_be_wider_or_narrower": "279-293",
            "ratio_one_changes_nothing": "242-293",
        },
    ),
    Implementation(
        "LastRecentlyInsertedKVCache",
        "sinks and newest",
        Source(
            *KEYS_VALUES,
            "keys_values/kvcache/basics.py",
            "16085500e25bf7d7010f46c420cfba553d55adaec303258e64a3e5ae98fe1388",
        ),
        fed_token_by_token("LastRecentlyInsertedKVCache"),
        "a fixed budget",
        {
            "keeps_as_few_as_asked": "523-526",
            "keeps_temporal_order": "602-615",
            "values_may_be_wider_or_narrower": "keys_values/kvcache/base.py:506-507",
        },
    ),
    Implementation(
        "H2OKVCache",
        "H2O",
        Source(
            *KEYS_VALUES,
            "keys_values/kvcache/h2o.py",
            "df5ec1ee031e59eee2ab9164ed2020a5e31f1f3ef8553d16554ae20d89d6c88f",
        ),
        fed_token_by_token("H2OKVCache"),
        "a fixed budget",
        {
            "keeps_temporal_order": "keys_values/kvcache/attn_weights.py:557-600",
            "values_may_be_wider_or_narrower": "keys_values/kvcache/base.py:506-507",
        },
    ),
    Implementation(
        "R1KV",
        "R-KV",
        Source(
            "Zefan-Cai/R-KV",
            "d15c9767e67c2bd9807128fecc35223fa2484a69",
            "rkv/compression/r1_kv.py",
            "e918877bb84b9d9a5ebcf0dbe9701ed6163e420ea92b08dbfed56e7449375986",
            stubs=("rkv.monkeypatch", "rkv.compression.rkv", "rkv.compression.simkv"),
        ),
        redundancy,
        "a fixed budget",
        {
            "keeps_as_few_as_asked": "20",
            "keeps_temporal_order": "82-178",
            "values_may_be_wider_or_narrower": "168-179",
            "ratio_one_changes_nothing": "46-178",
            "batch_rows_are_independent": "rkv/utils.py:48-49",
        },
    ),
)
