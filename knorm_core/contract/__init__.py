"""The contract: named checks that any KV-cache compressor, evaluator or eviction policy can be held to.

On the command line: ``pytest --pyargs knorm_core.contract --knorm-compressor mypkg.mymodule:my_compress``.
In a test file: `parametrize_with_checks`. From Python: `check_compressor`, `check_evaluator`, `check_policy`.

Names are imported when first used: the plugin of this package is loaded by every pytest run, and must
not drag torch into it.
"""

from knorm_core.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
