"""knorm: is a KV-cache compression result real?

The core of the suite: the compressor, the `prune_after` adjuster, the two-phase evaluator with its two
methods, models and texts. transformers and datasets are imported when first used, not with this package.
"""

from knorm_core.compress import l2_compress
from knorm_core.counts import Eviction, effective_prune_after, eviction_schedule, kept_count
from knorm_core.evaluation import PAPER_PROTOCOL, Evaluation, evaluate, evaluate_table, perplexity
from knorm_core.models import ModelNotFoundError, load_model
from knorm_core.policies import POLICIES
from knorm_core.setting import NoEvictionError, UnsupportedModelError
from knorm_core.texts import TEXT_SETS, Text, TextNotFoundError, load_texts

__all__ = [
    "PAPER_PROTOCOL",
    "POLICIES",
    "TEXT_SETS",
    "Evaluation",
    "Eviction",
    "ModelNotFoundError",
    "NoEvictionError",
    "Text",
    "TextNotFoundError",
    "UnsupportedModelError",
    "effective_prune_after",
    "evaluate",
    "evaluate_table",
    "eviction_schedule",
    "kept_count",
    "l2_compress",
    "load_model",
    "load_texts",
    "perplexity",
]
