"""A model's head on its own: final hidden states in, logits out, in blocks.

A comparison of two passes needs both distributions of every token. Their logits would take a thousand
times the memory of the states they are made from; so the states are kept and the logits made again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from knorm_core.methods.forward import position_argument, private_copy
from knorm_core.setting import UnsupportedModelError

_PROBED = 4  # tokens on which the head is checked against the model


class Head:
    """Logits of final hidden states, by the model's own code: ``Head(model)(states)``.

    The model without its body: whatever its family does after the last layer (scaling, soft-capping)
    is done, because it is its own forward that runs. Checked once against the whole model.

    Raises:
        UnsupportedModelError: the model's logits are not a function of its body's last hidden state.
    """

    def __init__(self, model: nn.Module) -> None:
        self._headed = private_copy(model, "eager")  # every family has it
        tokens = torch.arange(_PROBED, device=model.device)  # type: ignore[call-overload]
        with torch.inference_mode():
            logits = self._headed(input_ids=tokens[None], use_cache=False).logits[0]
            states = last_states(self._headed, tokens[None], tokens, _PROBED)[0]
            self._headed._modules[_body_name(self._headed)] = _Body()
            try:
                again = self(states)
            except (AttributeError, TypeError):  # it wants more of its body than that
                again = torch.empty(0)
        # The same matrix product on the same numbers, but perhaps of another number of rows.
        if logits.shape != again.shape or not torch.allclose(logits, again, rtol=1e-5, atol=1e-6):
            raise UnsupportedModelError(
                f"{type(model).__name__} does not make its logits from its body's last hidden state alone, "
                f"so they cannot be made block by block"
            )

    @torch.inference_mode()
    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) to (rows, vocabulary)."""
        return self._headed(inputs_embeds=states.unsqueeze(0), use_cache=False).logits[0]


def separate_head(model: nn.Module) -> Head | None:
    """The head, or None where logits can only be made by the whole model."""
    try:
        return Head(model)
    except UnsupportedModelError:
        return None


class _Body(nn.Module):
    """Takes the place of the layers: returns its input as their output."""

    @property
    def decoder(self) -> nn.Module:  # OPT calls what is within its body
        return self

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def last_states(model: nn.Module, fed: torch.Tensor, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Final hidden states of the last ``count`` tokens of one pass: (batch, length) to (batch, count, hidden).

    ``model`` is a private copy; its head is not run.
    """
    states = body_of(model)(
        input_ids=fed, use_cache=False, **position_argument(model, positions.to(fed.device))
    ).last_hidden_state
    return states[:, -count:].clone()


def body_of(model: nn.Module) -> nn.Module:
    """A model without its head.

    Raises:
        UnsupportedModelError: it has none.
    """
    body = model._modules.get(_body_name(model))
    if body is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no body apart from its head")
    return body


def _body_name(model: nn.Module) -> str:
    name = str(model.base_model_prefix)
    return name if name in model._modules else "model"  # Gemma 3's prefix leads nowhere in transformers 4
