"""The runner of a model by its own code in `transformers`, over a bound pool: slower than a native one, and as right.

Stands where baton.engine.runner.TorchModelRunner does, for architectures without a native family. Which of them can run
on pages no list says: each is tried when it is loaded (`selfcheck`), and refused with the reason when it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from baton.core.errors import CheckpointError, ConfigError
from baton.core.layout import FLOAT8, KvLayout
from baton.engine import products
from baton.engine.batch import StepBatch
from baton.engine.cpu.library import kernels
from baton.engine.cpu.linear import QUANTIZATIONS
from baton.engine.cuda.support import arithmetic, pick_device
from baton.engine.model.cache_scale import cache_scale
from baton.engine.model.config import read_eos_token_ids
from baton.engine.model.files import model_revision, read_config
from baton.engine.model.matrices import Matrices
from baton.engine.model.projection import Products
from baton.engine.model.tensors import Progress, TensorReader
from baton.engine.model.through.checkpoint import context_tokens, load_transformers
from baton.engine.model.through.linears import replace_linears, watched
from baton.engine.model.through.plans import Trial, fitting_layout
from baton.engine.model.through.served import Served, find_served
from baton.engine.model.weights import computed_dtype


class ThroughRunner:
    """`ModelRunner` (baton.engine.batch) of a model of `transformers`. Use from one thread at a time."""

    model_backend = "transformers"
    can_capture = False

    def __init__(
        self,
        served: Served,
        layout: KvLayout,
        max_context_tokens: int,
        eos_token_ids: frozenset[int],
        own_kernels: bool = True,
    ) -> None:
        self.layout = layout
        self.pooler = served.pooler
        self.vocab_size = served.pooler.vocab_size
        self.max_context_tokens = max_context_tokens
        self.eos_token_ids = eos_token_ids
        self.device = next(served.plan.model.parameters()).device
        self.passes = served.plan.passes
        self._steps = served.plan.steps(layout, own_kernels)
        self._states = served.states.steps(layout, own_kernels) if served.states is not None else None
        self._head = served.head
        self._pool: torch.Tensor | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        dtype: str = "auto",
        page_size: int = 16,
        device: str = "cpu",
        progress: Progress | None = None,
        max_context_tokens: int | None = None,
        kv_dtype: str = "auto",
        own_kernels: bool = True,
        trust_remote_code: bool = False,
        quantization: str = "none",
    ) -> ThroughRunner:
        """Load the checkpoint folder `path`; parameters as for TorchModelRunner.load.

        `own_kernels`: Baton's attention and products on a CPU, where they can be had. `trust_remote_code`: code that
        comes with the checkpoint may run. Raises CheckpointError when the model cannot run on pages, after trying,
        with the reason.
        """
        folder, place = Path(path), torch.device(pick_device(device))
        if quantization not in QUANTIZATIONS:
            raise ConfigError(f"quantization is {quantization!r}; it must be {', '.join(QUANTIZATIONS)}")
        dtype = computed_dtype(folder, dtype, place)
        if progress is not None:
            progress(0, 1)
        model, stored = load_transformers(folder, getattr(torch, dtype), place, trust_remote_code)
        if progress is not None:
            progress(1, 1)
        limit = context_tokens(model)
        if max_context_tokens is not None and not 1 <= max_context_tokens <= limit:
            raise ConfigError(f"max_context_tokens is {max_context_tokens}; the model allows 1 to {limit}")
        layout = KvLayout(f"{model_revision(folder)}-through", dtype, 0, page_size, 0, 0)
        with watched(model) as untouched:
            try:
                served = find_served(folder, model, Trial(layout, limit, own_kernels))
            except CheckpointError as error:
                raise CheckpointError(f"{folder}: {error.message}") from error
        kept, by = 0, _products(place, quantization, dtype, own_kernels)
        if by is not None:
            matrices = Matrices(TensorReader({}, getattr(torch, dtype), place), by)
            keeps = by.keep is not None and place.type == "cpu"
            replace_linears(model, untouched, matrices.product, stored.matrix_of if stored and keeps else None)
            kept = matrices.tally.kept
        if stored is not None:
            stored.tell(kept)
        shape = served.plan.shape
        if shape.states:  # they are of what the model computes in, whatever K and V are kept as
            layout = replace(layout, model_revision=f"{layout.model_revision}-{dtype}")
        if kv_dtype == FLOAT8:
            layout = replace(layout, dtype=FLOAT8, scale=cache_scale(folder))
        layout = fitting_layout(layout, shape, limit)
        return cls(served, layout, max_context_tokens or limit, _eos(folder, model), own_kernels)

    def bind_pool(self, pool: torch.Tensor) -> None:
        """Use `pool`, laid out as `layout` says, for K and V; it stays the caller's."""
        self._bind(pool)
        self._pool = pool

    def unbind_pool(self) -> None:
        """Let go of the pool, so that its memory can be given back."""
        if self._pool is not None:
            self._bind(self._pool[:, :0])
        self._pool = None

    def capture(self, sizes: Sequence[int], progress: Progress) -> None:
        """Not to be had: what the model's code does between its products is not known to be the same each time."""
        raise ConfigError("cuda_graphs = true is to be had for native models only")

    @torch.inference_mode()
    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """Write K and V of the batch's tokens, and return float32 logits [L, V] of `batch.logit_rows`; of a model that
        draws no tokens its hidden states.

        `on_layer(l)` is called when layer l's K and V are in the pool, before that layer attends.
        """
        if self._pool is None:
            raise ConfigError("no pool is bound; call bind_pool before forward")
        return self._steps.forward(batch, on_layer).float()

    @property
    def has_states(self) -> bool:
        """Whether `hidden` and `logits` can be called."""
        return self._states is not None

    @torch.inference_mode()
    def hidden(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """As `forward`, but the final hidden states [L, E] that it makes logits of."""
        if self._pool is None or self._states is None:
            raise ConfigError("hidden states are not to be had: no pool is bound, or the model is not in two parts")
        return self._states.forward(batch, on_layer)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [L, V] of what `hidden` returns; of a model that draws no tokens there are none, L being 0."""
        return self._head(hidden) if self._head is not None else hidden.new_empty((0, self.vocab_size))

    def _bind(self, pool: torch.Tensor) -> None:
        self._steps.bind_pool(pool)
        if self._states is not None:
            self._states.bind_pool(pool)


def _products(device: torch.device, quantization: str, dtype: str, own_kernels: bool) -> Products | None:
    """What multiplies in the place of the model's linear layers; None: they stay."""
    if device.type != "cpu":
        return None if quantization == "none" else products.on_gpu(arithmetic(device), quantization, device)
    if quantization == "none" and not own_kernels:
        return None
    return products.on_cpu(kernels() if own_kernels else None, quantization, dtype, False)


def _eos(folder: Path, model: PreTrainedModel) -> frozenset[int]:
    """Ids that end a generation: those that the files name, else those that the config's class takes."""
    named = read_eos_token_ids(folder, read_config(folder))
    if named is not None:
        return named
    value = getattr(model.config.get_text_config(decoder=True), "eos_token_id", None)
    return frozenset() if value is None else frozenset(value if isinstance(value, list) else [value])
