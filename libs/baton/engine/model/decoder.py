"""The forward pass of a decoder-only transformer over a step's tokens: Llama, Mistral, Qwen2, Qwen3 families.

One step of the engine runs it once. It is a function of weights; K and V of earlier tokens are the attention
backend's. Rounding follows `transformers`: normalization in float32, everything else in the weights' dtype.

    T  new tokens of all rows together      H  query heads        E  hidden size          V  vocabulary
    L  tokens whose logits are wanted       K  key/value heads    F  intermediate size    D  head_dim
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from baton.engine.attention import AttentionBackend
from baton.engine.batch import StepBatch
from baton.engine.model.config import DecoderConfig
from baton.engine.model.rope import inverse_frequencies, rotate, rotation
from baton.engine.model.weights import DecoderWeights, LayerWeights


class Decoder:
    """A model ready to run. Stateless between calls, apart from what `attention` keeps."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, attention: AttentionBackend) -> None:
        self._config = config
        self._weights = weights
        self._attention = attention
        embedding = weights.embedding_VE
        self._dtype = embedding.dtype
        self._frequencies = inverse_frequencies(config.rope, config.head_dim).to(embedding.device)

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """Logits, float32 [L, V], of `batch.logit_rows`; `on_layer(l)` follows at once on layer l's K and V writes."""
        self._attention.plan(batch)
        cos_T1D, sin_T1D = rotation(self._frequencies, batch.positions, self._config.rope.attention_factor, self._dtype)
        hidden_TE = self._weights.embedding_VE[batch.token_ids]
        for layer, weights in enumerate(self._weights.layers):
            q_THD, k_TKD, v_TKD = self._project(weights, hidden_TE, cos_T1D, sin_T1D)
            self._attention.write(layer, k_TKD, v_TKD)
            if on_layer is not None:
                on_layer(layer)
            attended_THD = self._attention.run(layer, q_THD, k_TKD, v_TKD)
            hidden_TE = hidden_TE + weights.output(attended_THD.flatten(1))
            hidden_TE = hidden_TE + self._mlp(weights, hidden_TE)
        final_LE = rms_norm(hidden_TE[batch.logit_rows], self._weights.final_norm_E, self._config.norm_eps)
        return self._weights.head(final_LE).float()

    def _project(
        self, weights: LayerWeights, hidden_TE: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated queries and keys, and values, of one layer."""
        config = self._config
        normed_TE = rms_norm(hidden_TE, weights.input_norm_E, config.norm_eps)
        qkv_TND = weights.qkv(normed_TE).unflatten(1, (-1, config.head_dim))
        q_THD, k_TKD, v_TKD = qkv_TND.split((config.heads, config.kv_heads, config.kv_heads), dim=1)
        if weights.q_norm_D is not None and weights.k_norm_D is not None:
            q_THD = rms_norm(q_THD, weights.q_norm_D, config.norm_eps)
            k_TKD = rms_norm(k_TKD, weights.k_norm_D, config.norm_eps)
        return rotate(q_THD, cos_T1D, sin_T1D), rotate(k_TKD, cos_T1D, sin_T1D), v_TKD

    def _mlp(self, weights: LayerWeights, hidden_TE: torch.Tensor) -> torch.Tensor:
        normed_TE = rms_norm(hidden_TE, weights.mlp_norm_E, self._config.norm_eps)
        gate_TF, up_TF = weights.gate_up(normed_TE).chunk(2, dim=-1)
        return weights.down(F.silu(gate_TF) * up_TF)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Scale x [..., n] to unit root mean square along its last dimension, in float32, then by `weight` [n]."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)
