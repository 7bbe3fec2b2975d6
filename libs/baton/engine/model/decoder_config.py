"""What a decoder looks like: one description for all families. The decoder and the weights know no family, only these
fields, which baton.engine.model.config makes of a config.json."""

from __future__ import annotations

from dataclasses import dataclass

from baton.engine.attention import Window
from baton.engine.model.block_config import Blocks
from baton.engine.model.delta_config import GatedDeltaConfig
from baton.engine.model.family import Names, NormKind
from baton.engine.model.hybrid_config import ConvConfig
from baton.engine.model.layer_rules import QueryScaling
from baton.engine.model.mamba_config import Mamba1Config, Mamba2Config, Multipliers
from baton.engine.model.moe_config import MoeConfig
from baton.engine.model.rope import Rope


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """Sizes of multi-head latent attention: of the latents of queries (None: there are none) and of keys and values, of
    the parts of a query or key that are not rotated and that are, and of a value."""

    q_rank: int | None
    rank: int
    plain: int
    rotated: int
    value: int


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Shape and variant of a decoder-only transformer. Sizes are counts of elements, `context_tokens` of positions.

    `ropes`, `windows`, `query_scalings` and `blocks` have one entry per layer. `qk_norm` is none, head (each head by
    itself), heads (so, with weights of its own), all (a token's heads together), or unit (as head, without weights, in
    layers that rotate). `kv_heads` and `head_dim` are those of the cache: with `latent` one head, of half a latent.
    Heads are 0 where no layer attends, and `intermediate_size` is where none has an MLP. Without a head for tokens the
    model embeds or classifies. `dtype` is what the checkpoint says it is stored in, if it does.
    """

    architecture: str
    names: Names
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm: NormKind
    norm_eps: float
    ropes: tuple[Rope, ...]
    interleaved: bool
    windows: tuple[Window, ...]
    query_scalings: tuple[QueryScaling | None, ...]
    blocks: Blocks
    context_tokens: int
    eos_token_ids: frozenset[int]
    attention_scale: float
    tied_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str = "none"
    activation: str = "silu"
    gated: bool = True
    parallel: bool = False
    attention_soft_cap: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    logit_soft_cap: float | None = None
    has_head: bool = True
    sinks: str | None = None  # name of a layer's attention sinks
    clamped_swiglu: tuple[float, float] | None = None  # alpha and limit of GPT-OSS's gate
    moe: MoeConfig | None = None
    latent: LatentConfig | None = None
    conv: ConvConfig | None = None
    mamba1: Mamba1Config | None = None
    mamba2: Mamba2Config | None = None
    mixes_beside: bool = False  # layers that keep a state attend, too
    multipliers: Multipliers | None = None
    wide_residual: bool = False
    gated_delta: GatedDeltaConfig | None = None
    kimi_delta: bool = False  # the channels of gated deltas decay one by one
    gated_attention: bool = False
    stateful_names: Names | None = None  # of layers that keep a state, where these call things otherwise
    dtype: str | None = None

    @property
    def stateful(self) -> tuple[int, ...]:
        """Layers that keep a state of constant size."""
        mixer = self.mamba1 or self.mamba2 or self.conv or self.gated_delta
        return () if mixer is None else mixer.layers

    @property
    def attending(self) -> tuple[int, ...]:
        """Layers that keep K and V."""
        return tuple(layer for layer in range(self.layers) if self.mixes_beside or layer not in self.stateful)

    @property
    def mixed_size(self) -> int:
        """Of what Mamba2's mixers give to their output matrix."""
        return 0 if self.mamba2 is None else self.mamba2.inner

    def names_of(self, layer: int) -> Names:
        """What a layer calls its tensors."""
        return self.stateful_names if self.stateful_names and layer in self.stateful else self.names

    @property
    def rotary_dim(self) -> int:
        """Size of what is rotated of a head, or of which a part is."""
        return self.head_dim if self.latent is None else self.latent.rotated

    @property
    def mlp_sizes(self) -> tuple[int, ...]:
        """Intermediate sizes of all MLPs and experts."""
        if self.moe is None:
            return (self.intermediate_size,)
        dense = (self.intermediate_size,) if len(self.moe.layers) < self.layers else ()
        return (*dense, self.moe.size, *((self.moe.shared_size,) if self.moe.shared_size else ()))

    def cache_variant(self, context_tokens: int) -> str:
        """What K depends on beside the checkpoint, as the end of a revision: longrope turns by how long requests may
        get. Caches of different variants must not be mixed."""
        short = any(rope.divisors is not None and context_tokens <= rope.original_tokens for rope in self.ropes)
        return "-short" if short else ""
