"""The forward pass of a decoder-only transformer over a step's tokens: Llama, Mistral, Qwen2, Qwen3 families.

One step of the engine runs it once. It is a function of weights; K and V of earlier tokens are the attention
backend's, and how products and what stands between them are computed is that of `weights` and `pointwise`.

    T  new tokens of all rows together      H  query heads        E  hidden size          V  vocabulary
    L  tokens whose logits are wanted       K  key/value heads    F  intermediate size    D  head_dim
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from baton.engine.attention import AttentionBackend
from baton.engine.batch import StepBatch
from baton.engine.model.config import DecoderConfig
from baton.engine.model.pointwise import Pointwise
from baton.engine.model.rope import inverse_frequencies, rotation
from baton.engine.model.weights import DecoderWeights


class Decoder:
    """A model ready to run. Stateless between calls, apart from what `attention` keeps."""

    def __init__(
        self, config: DecoderConfig, weights: DecoderWeights, attention: AttentionBackend, pointwise: Pointwise
    ) -> None:
        self._config = config
        self._weights = weights
        self._attention = attention
        self._pointwise = pointwise
        self._frequencies = inverse_frequencies(config.rope, config.head_dim).to(weights.embedding_VE.device)
        self._next_norms = [*(layer.input_norm_E for layer in weights.layers[1:]), weights.final_norm_E]

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """Logits, float32 [L, V], of `batch.logit_rows`; `on_layer(l)` follows at once on layer l's K and V writes.

        `attention` has planned the batch.
        """
        return self.logits(self.hidden(batch, on_layer))

    def logits(self, hidden_LE: torch.Tensor) -> torch.Tensor:
        """float32 [L, V] of what `hidden` returns."""
        return self._weights.head(hidden_LE).float()

    def hidden(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """What `forward` makes logits of: the last layer's output for `batch.logit_rows` [L, E], normed."""
        pointwise, layers = self._pointwise, self._weights.layers
        factor = self._config.rope.attention_factor
        cos_T1D, sin_T1D = rotation(self._frequencies, batch.positions, factor, self._weights.embedding_VE.dtype)
        hidden_TE = self._weights.embedding_VE[batch.token_ids]
        normed_TE = pointwise.norm(hidden_TE, layers[0].input_norm_E)
        for index, (layer, next_norm_E) in enumerate(zip(layers, self._next_norms, strict=True)):
            q_THD, k_TKD, v_TKD = pointwise.rotate(
                layer.qkv(normed_TE), cos_T1D, sin_T1D, layer.q_norm_D, layer.k_norm_D
            )
            self._attention.write(index, k_TKD, v_TKD)
            if on_layer is not None:
                on_layer(index)
            attended_TN = self._attention.run(index, q_THD, k_TKD, v_TKD).flatten(1)
            if index == len(layers) - 1 and len(batch.logit_rows) < len(hidden_TE):
                # Nothing attends to other tokens from here on: only those whose logits are wanted go further.
                attended_TN, hidden_TE = attended_TN[batch.logit_rows], hidden_TE[batch.logit_rows]
            hidden_TE, normed_TE = pointwise.add_norm(hidden_TE, layer.output(attended_TN), layer.mlp_norm_E)
            added_TE = layer.down(pointwise.gate(layer.gate_up(normed_TE)))
            hidden_TE, normed_TE = pointwise.add_norm(hidden_TE, added_TE, next_norm_E)
        return normed_TE
