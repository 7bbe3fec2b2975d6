"""A checkpoint's pooler: what tasks its model can do, and the small weights that they need beside the model's own."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from baton.core.architecture import classifies, labels
from baton.core.pooling import Task
from baton.engine.model.encoder import without_prefix
from baton.engine.model.encoder_config import EncoderConfig
from baton.engine.model.files import read_config, tensor_entries
from baton.engine.model.projection import Projection
from baton.engine.model.weights import DecoderWeights, read_tensors
from baton.engine.pooling.pooler import ClassifierHead, Pooler, Project, load_dense
from baton.engine.pooling.spec import Pooling, read_activation, read_embedding_spec

_ROBERTA_HEAD = ("classifier.dense", "classifier.out_proj")


def load_causal_pooler(path: str | Path, vocab_size: int, hidden_size: int, weights: DecoderWeights) -> Pooler:
    """The pooler of a causal model.

    With a head for tokens it generates, scores and embeds; one that classifies does that alone; without either it
    embeds. Raises CheckpointError.
    """
    folder, head = Path(path), weights.head
    dtype, device = weights.embedding_VE.dtype, weights.embedding_VE.device
    raw, score = read_config(folder), None
    if classifies(raw):
        shapes = {"score.weight": (len(labels(raw)), hidden_size)}
        score = _linear(read_tensors(tensor_entries(folder), shapes, torch.float32, device)["score.weight"])
    vocabulary = _of_dtype(head, dtype) if head is not None else None
    return last_token_pooler(folder, vocab_size, hidden_size, device, vocabulary, score)


def last_token_pooler(
    folder: Path,
    vocab_size: int,
    hidden_size: int,
    device: torch.device,
    vocabulary: Project | None,
    classifier: Project | None,
) -> Pooler:
    """The pooler of a causal model with these heads. Raises CheckpointError."""
    raw, embedding, head = read_config(folder), read_embedding_spec(folder, Pooling.LAST), None
    if classifier is not None:
        head = ClassifierHead(len(labels(raw)), Pooling.LAST, read_activation(raw), classifier)
    tasks = {Task.CLASSIFY} if head is not None else {Task.EMBED}
    if vocabulary is not None:
        tasks |= {Task.GENERATE, Task.SCORE}
    return Pooler(
        tasks=frozenset(tasks),
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        embedding=embedding,
        dense=load_dense(embedding.dense, device),
        classifier=head,
        vocabulary=vocabulary,
    )


def load_encoder_pooler(path: str | Path, config: EncoderConfig, device: torch.device) -> Pooler:
    """The pooler of an encoder: it embeds, or classifies by the head that stands on its first token."""
    folder = Path(path)
    raw = read_config(folder)
    embedding = read_embedding_spec(folder, Pooling.CLS)
    classifier = None
    if config.classifies:
        count = len(labels(raw))
        logits = _encoder_classifier(folder, config, count, device)
        classifier = ClassifierHead(count, Pooling.CLS, read_activation(raw), logits)
    return Pooler(
        tasks=frozenset({Task.CLASSIFY if classifier is not None else Task.EMBED}),
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        embedding=embedding,
        dense=load_dense(embedding.dense, device),
        classifier=classifier,
    )


def _encoder_classifier(folder: Path, config: EncoderConfig, count: int, device: torch.device) -> Project:
    """Two layers with tanh between them; BERT has the first one in the model, RoBERTa in the head."""
    entries = without_prefix(tensor_entries(folder), config.prefix)
    first, last = ("pooler.dense", "classifier") if "pooler.dense.weight" in entries else _ROBERTA_HEAD
    size = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        f"{first}.weight": (size, size), f"{first}.bias": (size,), f"{last}.weight": (count, size),
        f"{last}.bias": (count,),
    }  # fmt: skip
    w1, b1, w2, b2 = read_tensors(entries, shapes, torch.float32, device).values()
    return lambda x: F.linear(F.linear(x, w1, b1).tanh(), w2, b2)


def _linear(weight: torch.Tensor) -> Project:
    return lambda x: F.linear(x, weight)


def _of_dtype(head: Projection, dtype: torch.dtype) -> Project:
    return lambda x: head(x.to(dtype))
