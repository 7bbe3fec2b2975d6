"""By what names the tensors of a checkpoint are read, where it may have them by others."""

from __future__ import annotations

from baton.engine.model.decoder_config import DecoderConfig
from baton.engine.model.files import TensorEntry

_TEXT_PREFIXES = {"language_model.": "", "model.language_model.": "model."}


def named_as_causal(entries: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Tensors by their names in a causal model: of one that was saved without its head (`layers.0. ...`), of the text
    part of one that sees as well (`language_model.model.layers.0. ...`, `model.language_model.layers.0. ...`), and of
    Mamba as it was first published."""
    if "backbone.embedding.weight" in entries:
        return {_renamed(name, "backbone.embedding.", "backbone.embeddings."): each for name, each in entries.items()}
    if "embed_tokens.weight" in entries:
        return {name if name.startswith("lm_head") else f"model.{name}": entry for name, entry in entries.items()}
    for prefix, causal in _TEXT_PREFIXES.items():
        if any(name.startswith(prefix) for name in entries):
            return {_renamed(name, prefix, causal): entry for name, entry in entries.items()}
    return entries


def _renamed(name: str, prefix: str, causal: str) -> str:
    return causal + name.removeprefix(prefix) if name.startswith(prefix) else name


def by_first_names(entries: dict[str, TensorEntry], config: DecoderConfig) -> dict[str, TensorEntry]:
    """Tensors by what the family calls them, where a checkpoint has what a layer may have instead (`otherwise`)."""
    firsts: dict[str, str] = {}
    for layer, blocks in enumerate(config.blocks):
        names = config.names_of(layer)
        for block in {*blocks} - {None}:
            prefix = names.layer.format(block)
            firsts |= {f"{prefix}.{other}": f"{prefix}.{first}" for first, other in names.otherwise.items()}

    def named(name: str) -> str:
        module, _, kind = name.rpartition(".")
        first = f"{firsts[module]}.{kind}" if module in firsts else name
        return name if first in entries else first

    return {named(name): entry for name, entry in entries.items()} if firsts else entries
