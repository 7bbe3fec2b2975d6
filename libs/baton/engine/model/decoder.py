"""The forward pass of a decoder-only transformer over a step's tokens, of every family of `families`.

One step of the engine runs it once. It is a function of weights; K and V of earlier tokens are the attention
backend's, and how products and what stands between them are computed is that of `weights` and `pointwise`.

    T  new tokens of all rows together      H  query heads        E  hidden size          V  vocabulary
    L  tokens whose logits are wanted       K  key/value heads    F  intermediate size    D  head_dim
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from baton.engine.attention import AttentionBackend
from baton.engine.batch import StepBatch
from baton.engine.model.decoder_config import DecoderConfig
from baton.engine.model.mixers import Beside, StateMixer
from baton.engine.model.pointwise import Norm, Pointwise
from baton.engine.model.rope import inverse_frequencies, rotation
from baton.engine.model.weights import DecoderWeights
from baton.engine.state_store import States


@dataclass(frozen=True, slots=True)
class Embedded:
    """A step's tokens before the first layer: `hidden_TE`, and of each kind of rotation cosines and sines [T, 1, D]."""

    hidden_TE: torch.Tensor
    angles: list[tuple[torch.Tensor, torch.Tensor]]


class Decoder:
    """A model ready to run. Stateless between calls, apart from what `attention` keeps."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        attention: AttentionBackend,
        pointwise: Pointwise,
        context_tokens: int,
        states: States | None = None,
    ) -> None:
        """`context_tokens`: how long requests may get. `states`: of layers that keep one, if any does."""
        self._config = config
        self._weights = weights
        self._attention = attention
        self._states = states
        self._pointwise = pointwise
        device, dtype = weights.embedding_VE.device, weights.embedding_VE.dtype
        self._ropes = list(dict.fromkeys(config.ropes))
        self._rope_of_layer = [self._ropes.index(rope) for rope in config.ropes]
        self._frequencies = [
            inverse_frequencies(rope, config.rotary_dim, context_tokens).to(device) for rope in self._ropes
        ]
        self._next_norms = [*(layer.attention_norm for layer in weights.layers[1:]), weights.final_norm]
        # Rounded like the weights: so does the code that Gemma comes with.
        self._embedding_multiplier = float(torch.tensor(config.embedding_multiplier, dtype=dtype))

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """Logits, float32 [L, V], of `batch.logit_rows`; `on_layer(l)` follows at once on layer l's K and V writes.

        `attention` and `states` have planned the batch.
        """
        return self.logits(self.hidden(batch, on_layer))

    def logits(self, hidden_LE: torch.Tensor) -> torch.Tensor:
        """float32 [L, V] of what `hidden` returns; zeros where the model has no head."""
        config = self._config
        if self._weights.head is None:
            return hidden_LE.new_zeros((len(hidden_LE), config.vocab_size), dtype=torch.float32)
        logits_LV = self._weights.head(hidden_LE).float()
        if config.logit_multiplier != 1.0:
            logits_LV = logits_LV * config.logit_multiplier
        if config.logit_soft_cap is not None:
            logits_LV = (logits_LV / config.logit_soft_cap).tanh() * config.logit_soft_cap
        return logits_LV

    def hidden(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """What `forward` makes logits of: the last layer's output for `batch.logit_rows` [L, E], normed."""
        return self.through_layers(self.embed(batch), batch, on_layer)

    def embed(self, batch: StepBatch) -> Embedded:
        """What goes into the first layer, and the angles of all."""
        hidden_TE = self._weights.embedding_VE[batch.token_ids]
        if self._embedding_multiplier != 1.0:
            hidden_TE = hidden_TE * self._embedding_multiplier
        angles = [
            rotation(frequencies, batch.positions, rope.attention_factor, hidden_TE.dtype)
            for rope, frequencies in zip(self._ropes, self._frequencies, strict=True)
        ]
        return Embedded(hidden_TE, angles)

    def through_layers(
        self, embedded: Embedded, batch: StepBatch, on_layer: Callable[[int], None] | None = None
    ) -> torch.Tensor:
        """What `hidden` returns. The caller gives up the memory of `embedded`."""
        layers = self._weights.layers
        hidden_TE, angles = embedded.hidden_TE, embedded.angles
        first_norm = layers[0].attention_norm
        normed_TE = hidden_TE if first_norm is None else self._pointwise.norm(hidden_TE, first_norm)
        if self._config.wide_residual:
            hidden_TE = hidden_TE.float()
        for index, (layer, next_norm) in enumerate(zip(layers, self._next_norms, strict=True)):
            attended_TN = self._attend(index, normed_TE, batch.positions, angles[self._rope_of_layer[index]], on_layer)
            if index == len(layers) - 1 and len(batch.logit_rows) < len(hidden_TE):
                # Nothing attends to other tokens from here on: only those whose logits are wanted go further.
                attended_TN, hidden_TE = attended_TN[batch.logit_rows], hidden_TE[batch.logit_rows]
                normed_TE = normed_TE[batch.logit_rows]
            added_TE = layer.output(attended_TN)
            if layer.mlp is None:
                hidden_TE, normed_TE = self._add(hidden_TE, added_TE, layer.attention_post_norm, next_norm)
                continue
            if self._config.parallel:
                hidden_TE = hidden_TE + added_TE
            else:
                hidden_TE, normed_TE = self._add(hidden_TE, added_TE, layer.attention_post_norm, layer.mlp_norm)
            added_TE = layer.mlp(normed_TE, self._pointwise)
            hidden_TE, normed_TE = self._add(hidden_TE, added_TE, layer.mlp_post_norm, next_norm)
        return normed_TE

    def _attend(
        self,
        index: int,
        normed_TE: torch.Tensor,
        positions_T: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        on_layer: Callable[[int], None] | None,
    ) -> torch.Tensor:
        """What goes into the output matrix of a layer, [T, N]. When `on_layer` is called all that the layer keeps of
        the new tokens is in the pool."""
        heads, scaling, mixed_TN = self._weights.layers[index].heads, self._config.query_scalings[index], None
        if isinstance(heads, StateMixer):
            mixed_TN = self._mix(index, heads, normed_TE)
            if on_layer is not None:
                on_layer(index)
            return mixed_TN
        if isinstance(heads, Beside):
            mixed_TN, heads = self._mix(index, heads.mixer, normed_TE), heads.heads
        q_THD, k_TKD, v_TKD = heads.of(normed_TE, *angles, self._pointwise)
        if scaling is not None:
            growth_T = 1 + scaling.beta * torch.log1p(torch.floor((positions_T + scaling.shift) / scaling.period))
            q_THD = q_THD * growth_T.to(q_THD.dtype)[:, None, None]
        self._attention.write(index, k_TKD, v_TKD)
        if on_layer is not None:
            on_layer(index)
        attended_THD = self._attention.run(index, q_THD, k_TKD, v_TKD)
        attended_TN = heads.attended(attended_THD, normed_TE, self._pointwise)
        return attended_TN if mixed_TN is None else torch.cat((attended_TN, mixed_TN), dim=-1)

    def _mix(self, index: int, mixer: StateMixer, normed_TE: torch.Tensor) -> torch.Tensor:
        """What goes into the output matrix of a layer that keeps a state; that is in the pool by then."""
        assert self._states is not None, "a model whose layers keep a state has a place for it"
        return self._states.mixed(index, mixer, normed_TE)

    def _add(
        self, hidden_TE: torch.Tensor, added_TE: torch.Tensor, post_norm: Norm | None, next_norm: Norm | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a block made, normed and scaled as the family does, added to `hidden_TE`; and the next block's input."""
        if post_norm is not None:
            added_TE = self._pointwise.norm(added_TE, post_norm)
        if self._config.residual_multiplier != 1.0:
            added_TE = added_TE * self._config.residual_multiplier
        if next_norm is None:
            hidden_TE = hidden_TE + added_TE
            return hidden_TE, hidden_TE
        if self._config.wide_residual:
            hidden_TE = hidden_TE + added_TE
            return hidden_TE, self._pointwise.norm(hidden_TE.to(added_TE.dtype), next_norm)
        return self._pointwise.add_norm(hidden_TE, added_TE, next_norm)
