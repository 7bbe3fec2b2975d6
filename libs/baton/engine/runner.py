"""The model runner: a checkpoint brought to life over a bound pool.

What a worker loads at start and the engine calls once per step. Knows batches, not requests, and neither samples
nor allocates pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from baton.core.errors import ConfigError
from baton.core.layout import FLOAT8, KV_DTYPES, KvLayout
from baton.engine import products
from baton.engine.attention import AttentionBackend, Scoring, TorchAttention, Window
from baton.engine.batch import StepBatch
from baton.engine.cpu import attention as cpu_attention
from baton.engine.cpu import pointwise as cpu_pointwise
from baton.engine.cpu.attention import CpuAttention
from baton.engine.cpu.library import ALIGNMENT, Kernels, kernels
from baton.engine.cpu.linear import QUANTIZATIONS
from baton.engine.cpu.pointwise import CpuPointwise
from baton.engine.cpu.recorded import RecordedSteps
from baton.engine.cpu.states import CpuStates
from baton.engine.cuda import attention as cuda_attention
from baton.engine.cuda.graphs import DecodeGraphs, GraphRecorder, Recorder
from baton.engine.cuda.states import GpuStates, flashinfer_updates
from baton.engine.cuda.support import arithmetic, memory_bytes, pick_device
from baton.engine.grouped_attention import attention_of, captures, parts_of
from baton.engine.grouping import in_groups
from baton.engine.model.cache_scale import cache_scale
from baton.engine.model.config import load_config
from baton.engine.model.decoder import Decoder
from baton.engine.model.decoder_config import DecoderConfig
from baton.engine.model.expert_products import spread_out_bytes
from baton.engine.model.files import model_revision
from baton.engine.model.mixers import state_parts
from baton.engine.model.pointwise import Pointwise, TorchPointwise
from baton.engine.model.tensors import Progress
from baton.engine.model.weights import DecoderWeights, computed_dtype, load_weights
from baton.engine.pooling.load import load_causal_pooler
from baton.engine.pooling.pooler import Pooler, generating
from baton.engine.state_store import States, StateStore, state_bytes

BACKENDS = ("auto", "torch")
_EXPERTS_SHARE = 0.5  # of a GPU's memory: what experts may take that need not


class TorchModelRunner:
    """`ModelRunner` (baton.engine.batch) on torch tensors. Use from one thread at a time."""

    model_backend = "native"

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        layout: KvLayout,
        max_context_tokens: int | None = None,
        kernels: Kernels | None = None,
        deterministic: bool = False,
        pooler: Pooler | None = None,
    ) -> None:
        """`kernels`: what runs on a CPU; None for plain torch operations, as for what the kernels do not support.

        `deterministic`: a token's logits are the same to the last bit however its request was cut into steps, and
        whatever is in the batch. ConfigError where that cannot be had. `pooler`: None: the model generates only.
        """
        limit = config.context_tokens
        if max_context_tokens is not None and not 1 <= max_context_tokens <= limit:
            raise ConfigError(f"max_context_tokens is {max_context_tokens}; the model allows 1 to {limit}")
        self.config = config
        self.layout = layout
        self.vocab_size = config.vocab_size
        self.max_context_tokens = max_context_tokens or limit
        self.eos_token_ids = config.eos_token_ids
        dtype = weights.embedding_VE.dtype
        latent_dim = None if config.latent is None else config.latent.rank
        sinks = tuple(layer.sinks_H for layer in weights.layers if layer.sinks_H is not None)
        scoring = Scoring(config.attention_scale, config.attention_soft_cap, sinks or None, latent_dim)
        self._kernels = kernels
        self.device = weights.embedding_VE.device
        workspace = cuda_attention.workspace_of(self.device)

        def backend(layout: KvLayout, windows: Sequence[Window], scoring: Scoring) -> AttentionBackend:
            name = str(dtype).removeprefix("torch.")
            if kernels is not None and cpu_attention.supports(layout, name, latent_dim):
                return CpuAttention(kernels, layout, windows, deterministic, scoring, name)
            if self.device.type == "cuda":
                return cuda_attention.backend(layout, config.heads, windows, self.device, scoring, dtype, workspace)
            return TorchAttention(layout, windows, scoring, dtype)

        self._attention = attention_of(layout, config.windows, scoring, backend)
        own_kernels = all(isinstance(part, CpuAttention) for part in parts_of(self._attention))
        pointwise: Pointwise = TorchPointwise(config)
        if kernels is not None and cpu_pointwise.supports(config, dtype):
            pointwise = CpuPointwise(kernels, config, dtype)
        if deterministic and not (own_kernels and isinstance(pointwise, CpuPointwise)):
            raise ConfigError(
                "deterministic = true needs Baton's kernels: a CPU, a C++ compiler, float32 or bfloat16, and sizes of "
                f"heads and layers that are multiples of {ALIGNMENT}"
            )
        self._states = _states(layout, config, weights, dtype, kernels)
        stateful = self._states is None or (isinstance(self._states, CpuStates) and self._states.covers)
        if deterministic and not (cpu_pointwise.covers(config) and stateful):
            raise ConfigError(
                f"deterministic = true is not to be had for {config.architecture}: Baton's kernels lack a part of it"
            )
        self._records = own_kernels and stateful
        context = self.max_context_tokens
        self._decoder = Decoder(config, weights, self._attention, pointwise, context, self._states)
        self._pool: torch.Tensor | None = None
        self._graphs: DecodeGraphs | None = None
        self._recorded: RecordedSteps | None = None
        self.pooler = pooler or generating(config.vocab_size, config.hidden_size)

    @classmethod
    def load(
        cls,
        path: str | Path,
        dtype: str = "auto",
        page_size: int = 16,
        device: str = "cpu",
        progress: Progress | None = None,
        max_context_tokens: int | None = None,
        quantization: str = "none",
        backend: str = "auto",
        deterministic: bool = False,
        kv_dtype: str = "auto",
    ) -> TorchModelRunner:
        """Load the checkpoint folder `path`.

        `dtype` is float32, bfloat16, float16, or auto: what the checkpoint is stored in, but float32 for a float16
        checkpoint on a CPU, where float16 products are slow and imprecise.
        `kv_dtype` is auto: pages hold the same dtype; or float8_e4m3: half of bfloat16's bytes, and less exact.
        `device` is cpu, cuda, or auto: a GPU where there is one.
        `progress(done_bytes, total_bytes)` is called while weights are read.
        `quantization` is int8 or fp8 (a scale per output), or int4 (a step and a lowest value per 32 weights of a row):
        the linear layers' weights in fewer bits, for less memory, and less exact; none: as the checkpoint has them.
        `backend` is auto (Baton's kernels and packed weights on a CPU), or torch: plain torch operations.
        `deterministic`, as for the constructor, takes attention to a new token about twice the time, and,
        where products are oneDNN's, a step of a single token a tenth more.
        Raises CheckpointError (naming the file or tensor) or ConfigError (naming the setting).
        """
        if quantization not in QUANTIZATIONS:
            raise ConfigError(f"quantization is {quantization!r}; it must be {', '.join(QUANTIZATIONS)}")
        if backend not in BACKENDS:
            raise ConfigError(f"backend is {backend!r}; it must be {' or '.join(BACKENDS)}")
        device = pick_device(device)
        on_cpu = device == "cpu"
        if quantization != "none" and deterministic:
            raise ConfigError(f"deterministic = true needs quantization = none; it is {quantization}")
        if kv_dtype not in KV_DTYPES:
            raise ConfigError(f"kv_cache_dtype is {kv_dtype!r}; it must be {' or '.join(KV_DTYPES)}")
        if page_size < 1:
            raise ConfigError(f"page_size is {page_size}; it must be at least 1 token")
        config = load_config(path)
        dtype = computed_dtype(path, dtype, torch.device(device))
        layout = KvLayout(
            model_revision=model_revision(path) + config.cache_variant(max_context_tokens or config.context_tokens),
            dtype=dtype if kv_dtype == "auto" else kv_dtype,
            layers=config.layers,
            page_size=page_size,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            scale=cache_scale(path) if kv_dtype == FLOAT8 else 1.0,
        )
        layout = grouped(layout, config, getattr(torch, dtype))
        native = on_cpu and backend == "auto"
        own = kernels() if native else None
        own = own.separate() if own is not None else None
        if native:
            by = products.on_cpu(own, quantization, dtype, deterministic)
        elif on_cpu:
            by = products.plain(quantization)
        else:
            place = torch.device(device)
            room = spread_out_bytes(config, getattr(torch, dtype)) <= memory_bytes(place) * _EXPERTS_SHARE
            by = products.on_gpu(arithmetic(place), quantization, place, room)
        weights = load_weights(path, config, getattr(torch, dtype), device, progress, by)
        pooler = load_causal_pooler(path, config.vocab_size, config.hidden_size, weights)
        return cls(config, weights, layout, max_context_tokens, own, deterministic, pooler)

    def bind_pool(self, pool: torch.Tensor) -> None:
        """Use `pool`, [layers, pages, 2, page_size, kv_heads, head_dim], for K and V; it stays the caller's.

        Raises ConfigError when shape or dtype are not those of `layout`.
        """
        self._attention.bind_pool(pool)
        if self._states is not None:
            self._states.bind_pool(pool)
        self._pool, self._graphs = pool, None
        if self._kernels is not None and self._records:
            saved, size = (_nothing_saved, 0) if self._states is None else (self._states.saved, self._states.row_bytes)
            self._recorded = RecordedSteps(self._kernels, self._decoder.through_layers, saved, size)

    def unbind_pool(self) -> None:
        """Let go of the pool, so that its memory can be given back."""
        if self._pool is not None:
            self._attention.bind_pool(self._pool[:, :0])
            if self._states is not None:
                self._states.bind_pool(self._pool[:, :0])
        self._pool = self._graphs = self._recorded = None

    @property
    def can_capture(self) -> bool:
        """Whether decode steps can be CUDA graphs, which needs FlashInfer, no experts, which count on the host, and no
        states."""
        return captures(self._attention) and self.config.moe is None and self._states is None

    def capture(self, sizes: Sequence[int], progress: Progress, recorder: Recorder | None = None) -> None:
        """Make CUDA graphs of decode steps of up to the greatest of `sizes` rows. The bound pool's last page becomes
        that of padding rows: nobody else may use it. `progress(done, total)` counts graphs."""
        pool, attention = self._bound_pool(), self._attention
        if not captures(attention):
            raise ConfigError("cuda_graphs = true needs a GPU and FlashInfer")
        pages = min(self.layout.blocks_for(self.max_context_tokens), pool.shape[1])
        graphs = DecodeGraphs(
            sizes, attention, self._decoder.forward, self.vocab_size, self.layout.page_size,
            padding_page=pool.shape[1] - 1, row_pages=pages, device=pool.device,
            groups=len(self.layout.groups),
        )  # fmt: skip
        try:
            graphs.capture(recorder or GraphRecorder(), progress)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"the GPU's memory is not enough for CUDA graphs: lower memory_fraction or max_running, or set "
                f"cuda_graphs = false ({error})"
            ) from error
        self._graphs = graphs

    @torch.inference_mode()
    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """Write K and V of the batch's tokens, and return float32 logits [L, V] of `batch.logit_rows`.

        `on_layer(l)` is called when layer l's K, V and state are in the pool, before that layer attends: what reads
        them elsewhere has the rest of the layer's time, and that of the layers after it. The result is an inference
        tensor: change it in place only under `torch.inference_mode`, and, on a GPU, before the next call.
        """
        self._bound_pool()
        if self._graphs is not None and on_layer is None and self._graphs.fits(batch):
            return self._graphs.run(batch)
        self._plan(batch)
        if self._recorded is not None and on_layer is None and self._recorded.fits(batch):
            return self._decoder.logits(self._recorded.run(self._decoder.embed(batch), batch))
        return self._decoder.forward(batch, on_layer)

    @torch.inference_mode()
    def hidden(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """As `forward`, but the final hidden states [L, E] that it makes logits of."""
        self._bound_pool()
        self._plan(batch)
        return self._decoder.hidden(batch, on_layer)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [L, V] of what `hidden` returns."""
        return self._decoder.logits(hidden)

    def _plan(self, batch: StepBatch) -> None:
        self._attention.plan(batch)
        if self._states is not None:
            self._states.plan(batch)

    def _bound_pool(self) -> torch.Tensor:
        if self._pool is None:
            raise ConfigError("no pool is bound; call bind_pool before forward")
        return self._pool


def _states(
    layout: KvLayout, config: DecoderConfig, weights: DecoderWeights, dtype: torch.dtype, kernels: Kernels | None
) -> States | None:
    """Of the layers that keep one; None where none does."""
    if not config.stateful:
        return None
    store = StateStore(layout, dict.fromkeys(config.stateful, state_parts(config, dtype)))
    mixers = {layer: each.mixer for layer, each in enumerate(weights.layers) if each.mixer is not None}
    if kernels is not None:
        return CpuStates(kernels, store, mixers, dtype)
    device = weights.embedding_VE.device
    if device.type != "cuda":
        return store
    return GpuStates(store, mixers, flashinfer_updates(mixers.values()), config.hidden_size, device)


def _nothing_saved() -> Callable[[], None]:
    """What to do after a step of a model without states is run twice."""
    return lambda: None


def grouped(layout: KvLayout, config: DecoderConfig, dtype: torch.dtype) -> KvLayout:
    """The layout of a model that computes in `dtype`, of one whose pages hold all layers. States are in `dtype`, which
    is not always that of K and V."""
    sizes = dict.fromkeys(config.stateful, state_bytes(state_parts(config, dtype)))
    revision = layout.model_revision + (f"-{dtype}".replace("torch.", "") if sizes else "")
    named = replace(layout, model_revision=revision)
    return in_groups(named, config.windows, config.context_tokens, sizes, config.attending)
