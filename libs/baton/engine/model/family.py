"""How a model family is described: what its checkpoints call things, and how it differs from others.

Read while a model is loaded. A family is what a config.json does not say: the names of its tensors, what its modelling
code takes for granted, and which keys it listens to. Adding one whose mathematics is here already is adding an entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Names:
    """What a checkpoint calls its tensors; those of a layer stand under `layer`. None: the family has no such tensor.

    One name for several parts (`qkv`, `gate_up`): the checkpoint has them in one matrix, in that order. Those of latent
    attention stand from `q_down` to `kv_up`, those of gated deltas from `delta_in` on; of these, what is in one matrix
    stands there by head of keys.
    """

    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    layer: str = "model.layers.{}"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    q_down: str = "self_attn.q_a_proj"
    q_down_norm: str = "self_attn.q_a_layernorm"
    q_up: str = "self_attn.q_b_proj"
    q_whole: str = "self_attn.q_proj"
    kv_down: str = "self_attn.kv_a_proj_with_mqa"
    kv_norm: str = "self_attn.kv_a_layernorm"
    kv_up: str = "self_attn.kv_b_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    output: str = "self_attn.o_proj"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    mixer: str = "mamba"
    conv_in: str = "conv.in_proj"
    conv: str = "conv.conv"
    conv_out: str = "conv.out_proj"
    delta_in: tuple[str, ...] = ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z")
    delta_rates: tuple[str, ...] = ("linear_attn.in_proj_b", "linear_attn.in_proj_a")
    delta_conv: tuple[str, ...] = ("linear_attn.conv1d",)
    delta_norm: str = "linear_attn.norm"
    delta_out: str = "linear_attn.out_proj"
    attention_norm: str | None = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_post_norm: str | None = None
    otherwise: Mapping[str, str] = field(default_factory=dict)  # and what may be there in place of some of a layer's


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What a checkpoint calls the tensors of a mixture of experts, under its layer; `{}` is the expert's number.

    Names of experts without a number: the checkpoint has all experts in one tensor, inputs before outputs. So it may
    have by the names `whole`, of gates and ups and of downs, outputs before inputs: where these are there, or where
    there are no others.
    """

    router: str = "mlp.gate"
    correction: str | None = None
    gate_up: tuple[str, ...] = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj")
    down: str = "mlp.experts.{}.down_proj"
    whole: tuple[str, str] | None = None
    shared_gate_up: tuple[str, ...] = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj")
    shared_down: str = "mlp.shared_expert.down_proj"
    shared_gate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How a family mixes experts. `*_key`: what its config.json calls a size; of several, any. A `bool | str` is as in
    Family."""

    names: ExpertNames = ExpertNames()
    experts_keys: tuple[str, ...] = ("num_experts", "num_local_experts")
    size_key: str = "moe_intermediate_size"
    dense_size_key: str = "intermediate_size"
    shared_size_key: str | None = None  # of the shared expert
    shared_count_key: str | None = None  # of shared experts, which are one, that many times as large
    # Which layers: all; step: each `decoder_sparse_step`th but `mlp_only_layers`; first: all after the
    # `dense_count_key` first; listed: `moe_layers`, or each `interleave_moe_layer_step`th; typed:
    # those that `mlp_layer_types` calls sparse, or all but the first; period: each `expert_layer_period`th, from
    # `expert_layer_offset` on
    layers: str = "all"
    dense_count_key: str = "first_k_dense_replace"
    sigmoid: bool = False  # scores of their own instead of shares
    corrected: bool | str = True  # where there is a name for what corrects scores
    least_sum: float = 1e-20  # is added to what scores are normalized by
    normalized: bool | str = "norm_topk_prob"
    group_judges: int = 0  # experts that a group is judged by; 0: there are no groups
    router_bias: bool = False
    expert_bias: bool = False
    interleaved: bool = False  # gate and up take turns in `gate_up`
    weighs_input: bool = False


@dataclass(frozen=True, slots=True)
class MambaKeys:
    """What a config.json calls sizes of Mamba's mixers, and whether their matrices have a bias."""

    heads: str = "mamba_n_heads"
    head_dim: str = "mamba_d_head"
    groups: str = "mamba_n_groups"
    state: str = "mamba_d_state"
    width: str = "mamba_d_conv"
    expand: str | None = "mamba_expand"  # None: heads say how wide they are
    inner: str | None = None  # where it may say what it is expanded to
    rank: str = "mamba_dt_rank"
    conv_bias: str = "mamba_conv_bias"
    bias: str = "mamba_proj_bias"
    output_bias: str = "mamba_proj_bias"


@dataclass(frozen=True, slots=True)
class NormKind:
    """How a family normalizes. `centred`: by deviation from the mean (LayerNorm), else by root mean square.

    `plus_one`: stored weights are added to one. `wide`: the product with the weight is made in float32, then rounded.
    """

    centred: bool = False
    bias: bool = False
    plus_one: bool = False
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What distinguishes a family.

    `defaults` are what its code assumes where config.json is silent, and name the optional keys that it listens to at
    all: another family's multiplier means nothing to it. A `bool | str` is a fact, or the key that tells.
    """

    model_type: str
    names: Names = Names()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)  # keys by the names that others give them, and by its own
    qkv_bias: bool | str = "attention_bias"
    output_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = False
    # none; head: each head by itself; heads: so, with weights of its own; all: all heads together; unit: each head by
    # itself, without weights, where it rotates
    qk_norm: str = "none"
    norm: NormKind = NormKind()
    eps_key: str = "rms_norm_eps"
    activation_key: str = "hidden_act"
    legacy_gelu: bool = False  # "gelu" means its approximation by tanh
    gated: bool = True
    has_mlp: bool = True
    wide_residual: bool | str = False  # layers' results are added up in float32
    interleaved: bool | str = False  # rotates neighbouring dimensions
    embedding_scaled: bool = False  # by the square root of the hidden size
    parallel: bool = False  # attention and MLP work on the same input
    # never; always; pattern: all but each `sliding_window_pattern`th; chunks: layers that rotate see their chunk only;
    # and where `use_sliding_window` is on: qwen: from `max_window_layers` on; layer_types: as these say
    sliding: str = "never"
    local_rope: bool = False  # sliding layers rotate by `rope_local_base_freq` (else by `rope_theta`), unscaled
    # Which layers rotate: all; sliding: those that slide; sliding_if_any: these, or all where none slides; listed: as
    # `no_rope_layers` says, else all but each `no_rope_layer_interval`th; asked: all, if `position_embedding_type` is
    # rope; based: all, if `rope_theta` is not null; none
    rope_layers: str = "all"
    sinks: str | None = None  # name of the layer's attention sinks
    latent: bool = False  # multi-head latent attention
    convolves: bool = False  # layers that `layer_types` calls conv, or `full_attn_idxs` lacks: gated short convolutions
    mamba1: bool = False  # Mamba's mixers
    mamba2: bool = False  # Mamba2's mixers
    # Which layers have these: listed: those that `layer_types` does not call attention, or that are not among
    # `attn_layer_indices`; period: all but each `attn_layer_period`th; alone: all, and none attends; beside: all, and
    # each attends, too
    mixes: str = "listed"
    mamba_keys: MambaKeys = MambaKeys()
    mixer_eps_key: str | None = None  # what Mamba's mixers select is normalized
    mixer_norm_weights: bool = False
    multiplied: bool = False  # what goes into matrices and comes out of them (baton.engine.model.mamba_config)
    kimi_delta: bool = False  # gated deltas whose channels decay one by one, and keys of a config.json of their own
    gated_delta: bool = False  # layers that `layer_types` calls linear_attention: gated deltas
    gated_attention: bool = False  # queries come with gates for what is attended to, head by head
    stateful_names: Names | None = None  # of layers that keep a state, where these call things otherwise
    blocks: bool = False  # what config.json calls layers are blocks, of which each mixes tokens or is an MLP
    adjusts_mlp: bool = False  # the intermediate size is two thirds of what it says, if `block_auto_adjust_ff_dim`
    mixture: Mixture | None = None
    refused: tuple[str, ...] = ()  # keys for what this decoder does not do: they must be absent, null or false
