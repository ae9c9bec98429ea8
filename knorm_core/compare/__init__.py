"""What moved: between a table and its baseline, cell by cell, and between two results folders.

``python -m knorm_core.compare RESULTS_A RESULTS_B`` prints the second: a torch or transformers upgrade, another
machine, a GPU against a CPU.
"""

from knorm_core.compare.differences import (
    Comparison,
    Difference,
    Flip,
    Moved,
    changed_cells,
    compare,
    relative_change,
)

__all__ = ["Comparison", "Difference", "Flip", "Moved", "changed_cells", "compare", "relative_change"]
