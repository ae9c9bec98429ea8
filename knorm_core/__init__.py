"""knorm: is a KV-cache compression result real?

The core of the suite: the compressor, the `prune_after` adjuster, the two-phase evaluator with its two
methods, models and texts. Names are imported when first used: pytest loads this package's plugins in every
run of an environment, and most of those have no use for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from knorm_core.compressor import l2_compress
    from knorm_core.counts import Eviction, effective_prune_after, eviction_schedule, kept_count
    from knorm_core.evaluation import Evaluation, perplexity
    from knorm_core.evaluator import PAPER_PROTOCOL, Evaluator, evaluate, evaluate_batch, evaluate_rows, evaluate_table
    from knorm_core.inputs.models import ModelNotFoundError, load_model
    from knorm_core.inputs.texts import TEXT_SETS, Text, TextNotFoundError, load_texts
    from knorm_core.latency import measure_latency
    from knorm_core.policies import POLICIES
    from knorm_core.setting import Arguments, NoEvictionError, SlowFallbackWarning, UnsupportedModelError
    from knorm_core.sweeps.cells import Cell, sweep_cells
    from knorm_core.sweeps.run import run_cells
    from knorm_core.sweeps.store import Store

_HOME = {
    "Arguments": "setting",
    "Evaluator": "evaluator",
    "evaluate_batch": "evaluator",
    "Cell": "sweeps.cells",
    "sweep_cells": "sweeps.cells",
    "l2_compress": "compressor",
    "Eviction": "counts",
    "effective_prune_after": "counts",
    "eviction_schedule": "counts",
    "kept_count": "counts",
    "Evaluation": "evaluation",
    "PAPER_PROTOCOL": "evaluator",
    "evaluate": "evaluator",
    "evaluate_rows": "evaluator",
    "evaluate_table": "evaluator",
    "perplexity": "evaluation",
    "measure_latency": "latency",
    "ModelNotFoundError": "inputs.models",
    "load_model": "inputs.models",
    "POLICIES": "policies",
    "NoEvictionError": "setting",
    "SlowFallbackWarning": "setting",
    "UnsupportedModelError": "setting",
    "Store": "sweeps.store",
    "run_cells": "sweeps.run",
    "TEXT_SETS": "inputs.texts",
    "Text": "inputs.texts",
    "TextNotFoundError": "inputs.texts",
    "load_texts": "inputs.texts",
}

__all__ = [
    "PAPER_PROTOCOL",
    "POLICIES",
    "TEXT_SETS",
    "Arguments",
    "Cell",
    "Evaluation",
    "Evaluator",
    "Eviction",
    "ModelNotFoundError",
    "NoEvictionError",
    "SlowFallbackWarning",
    "Store",
    "Text",
    "TextNotFoundError",
    "UnsupportedModelError",
    "effective_prune_after",
    "evaluate",
    "evaluate_batch",
    "evaluate_rows",
    "evaluate_table",
    "eviction_schedule",
    "kept_count",
    "l2_compress",
    "load_model",
    "load_texts",
    "measure_latency",
    "perplexity",
    "run_cells",
    "sweep_cells",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
