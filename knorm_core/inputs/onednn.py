"""Linear layers in float32, as fast as the processor can: many texts are worth more than digits.

PyTorch multiplies float32 matrices with MKL, which has no AVX-512 for AMD's processors: there oneDNN, which PyTorch
brings along, takes 0.43 of the time (240 against 103 GFLOP/s on one core of an EPYC of 2024), and an evaluation 0.6
of it. Perplexities of 512 tokens move by up to 1e-5, as they do between sets of instructions, so a result says which
of the two made it.
"""

from __future__ import annotations

import torch
from torch import nn


def multiply_with_onednn(model: nn.Module) -> None:
    """Let a model's linear layers multiply with oneDNN, where it is in float32 on a processor that has it.

    Args:
        model: any module; it is changed in place, its parameters stay what and where they are.
    """
    parameters = list(model.parameters())
    in_float32 = all((each.device.type, each.dtype) == ("cpu", torch.float32) for each in parameters)
    if not in_float32 or not has_onednn():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _OneDNNLinear  # the parameter stays, and may be shared with the embedding


def has_onednn() -> bool:
    """Whether PyTorch has oneDNN's product, which is not among its public functions."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _OneDNNLinear(nn.Linear):
    """A linear layer on the path that `torch.compile` takes on a processor."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return product
