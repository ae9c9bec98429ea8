"""The paper's other experiments, with controls and error bars: what lies around a perplexity table.

Each module is one question put to a model through the core's `evaluate`; none of them knows of pytest.
"""
