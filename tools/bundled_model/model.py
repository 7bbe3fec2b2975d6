"""The Llama decoder in plain torch, small enough to read, with the weight names of HF's LlamaForCausalLM.

Used by training and by evaluation. Architecture: Touvron et al. 2023 (LLaMA) with grouped-query attention (Ainslie et
al. 2023) and tied embeddings. Knows no tokens' meaning and no training.

Shapes: B rows, T tokens, D hidden_size, H heads, G kv heads, E head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

# On a CPU, explicit score matrices of blocks of this many queries train 2 to 5 times faster than
# scaled_dot_product_attention, whose backward pass is slow there (README.md has the figures).
_BLOCK_QUERIES = 256


@dataclass(frozen=True, slots=True)
class ModelShape:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context_tokens: int = 4096
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5


class KvCache:
    """Keys and values of a batch, columns `0:used` of [B, G, capacity, E] per layer.

    Columns are in order of writing, not of position: `readable`, bool [B, capacity], says which ones a row may read.
    """

    def __init__(self, shape: ModelShape, rows: int, capacity: int) -> None:
        size = (shape.layers, rows, shape.kv_heads, capacity, shape.head_dim)
        self.keys, self.values = torch.zeros(size), torch.zeros(size)
        self.readable = torch.zeros(rows, capacity, dtype=torch.bool)
        self.used = 0

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but `rows`, int64 indices."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.readable = self.readable[rows]

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new columns of one layer and return all columns up to the new ones, each [B, G, used + T, E]."""
        end = self.used + keys.shape[2]
        self.keys[layer, :, :, self.used : end] = keys
        self.values[layer, :, :, self.used : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self._eps)


class Attention(nn.Module):
    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self._shape, self._layer = shape, layer
        inner, shared = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, shared, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, shared, bias=False)
        self.o_proj = nn.Linear(inner, shape.hidden_size, bias=False)

    def forward(
        self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], cache: KvCache | None
    ) -> torch.Tensor:
        rows, tokens, _ = x.shape
        shape = self._shape
        q = rotate(self.q_proj(x).view(rows, tokens, shape.heads, -1).transpose(1, 2), *angles)
        k = rotate(self.k_proj(x).view(rows, tokens, shape.kv_heads, -1).transpose(1, 2), *angles)
        v = self.v_proj(x).view(rows, tokens, shape.kv_heads, -1).transpose(1, 2)
        mask = None
        if cache is not None:
            first = cache.used == 0
            k, v = cache.append(self._layer, k, v)
            mask = None if first else cache.readable[:, None, None, : k.shape[2]]
        mixed = _attend(q, k, v, mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, tokens, -1))


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention [B, H, T, E] of q to k and v of G heads; causal when there is no mask."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    if mask is None and q.device.type == "cpu":
        return _attend_in_blocks(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


def _attend_in_blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention, a block of queries after the other, each with the keys up to its own end."""
    tokens, size = q.shape[2:]
    flat_q, flat_k, flat_v = (x.reshape(-1, tokens, size) for x in (q, k, v))
    blocks = []
    for start in range(0, tokens, _BLOCK_QUERIES):
        end = min(tokens, start + _BLOCK_QUERIES)
        future = torch.full((end - start, end), float("-inf"), dtype=q.dtype).triu(start + 1)
        scores = torch.baddbmm(
            future.expand(len(flat_q), -1, -1), flat_q[:, start:end], flat_k[:, :end].mT, alpha=size**-0.5
        )
        blocks.append(torch.bmm(scores.softmax(-1), flat_v[:, :end]))
    return torch.cat(blocks, dim=1).view_as(q)


class FeedForward(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(shape, layer)
        self.mlp = FeedForward(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps)

    def forward(
        self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], cache: KvCache | None
    ) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), angles, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape, index) for index in range(shape.layers))
        self.norm = RMSNorm(shape.hidden_size, shape.norm_eps)


class Llama(nn.Module):
    """`hidden` runs the decoder, `logits` reads its output; training calls the latter for learned positions only."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
        self.register_buffer("frequencies", shape.rope_theta**-exponents, persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        """Normal weights; what writes into the residual stream is scaled down with depth (as in GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            std = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * self.shape.layers)
            nn.init.normal_(parameter, std=std)

    def hidden(self, ids: torch.Tensor, positions: torch.Tensor, cache: KvCache | None = None) -> torch.Tensor:
        """Final hidden states [B, T, D] of ids and positions, int64 [B, T]. With a cache, its rows grow by T columns;
        the first call attends causally, later ones to what `cache.readable` allows, so T must be 1 then."""
        weights = self.model.embed_tokens.weight
        kind = ids.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights.dtype
        theta = positions[:, None, :, None].float() * self.frequencies
        angles = (theta.cos().to(dtype), theta.sin().to(dtype))
        x = self.model.embed_tokens(ids).to(dtype)
        for layer in self.model.layers:
            x = layer(x, angles, cache)
        if cache is not None:
            cache.used += ids.shape[1]
        return self.model.norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits [..., vocab_size]; the output weights are the embeddings."""
        return F.linear(hidden, self.model.embed_tokens.weight).float()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding (Su et al. 2021) in HF's layout: pairs (i, i + E / 2) of [B, N, T, E]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
