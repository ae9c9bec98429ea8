"""knorm: is a KV-cache compression result real?

The core of the suite: the compressor, the `prune_after` adjuster, the two-phase evaluator with its two
methods, models and texts. Names are imported when first used: pytest loads this package's plugins in every
run of an environment, and most of those have no use for torch.
"""

from knorm_core.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
