"""Which model of `transformers` a checkpoint's config.json names, and how its classes make it.

The first step of loading one. Code that comes with a checkpoint runs only where that is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from baton.core.architecture import classifies, lacks_head
from baton.core.errors import CheckpointError
from baton.engine.model.files import read_config

Loaded = tuple[PreTrainedModel, dict[str, Any]]  # a model, and what was missing, too much or of another shape
# Where the tensors of a text part are among those of the whole, and what they are called where it stands alone.
_TEXT_TENSORS = {r"^language_model\.lm_head": "lm_head", r"^(model\.)?language_model\.(model\.)?": "model."}


@dataclass(frozen=True, slots=True)
class Architecture:
    """`maker`: the Auto class that knows the config, or the model's own where none does. `names`: how tensors are
    renamed, as `transformers` has it."""

    config: PretrainedConfig
    maker: type[_BaseAutoModelClass] | type[PreTrainedModel]
    trust_remote_code: bool
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, trust_remote_code: bool) -> Architecture:
        """A causal model with a head for tokens or labels, or without. Raises CheckpointError when `transformers` knows
        no such model."""
        raw = read_config(folder)
        config = _config(folder, raw, trust_remote_code)
        auto: type[_BaseAutoModelClass] = AutoModelForCausalLM
        if classifies(raw):
            auto = AutoModelForSequenceClassification
        elif is_headless(raw, config):
            auto = AutoModel
        if type(config) in auto._model_mapping or auto.__name__ in (raw.get("auto_map") or {}):
            return cls(config, auto, trust_remote_code)
        for name in raw.get("architectures") or ():
            own: Any = getattr(transformers, str(name), None)
            if isinstance(own, type) and issubclass(own, PreTrainedModel) and _takes(own, config):
                return cls(config, own, trust_remote_code)
        raise CheckpointError(
            f"{folder / 'config.json'}: architecture {_named(raw)} is no causal language model to transformers"
        )

    def load(self, folder: Path, options: Mapping[str, Any]) -> Loaded:
        """From a folder's own tensors."""
        options = {**options, "config": self.config, "key_mapping": dict(self.names) or None, "local_files_only": True}
        if issubclass(self.maker, _BaseAutoModelClass):
            options["trust_remote_code"] = self.trust_remote_code
        loaded: Loaded = self.maker.from_pretrained(folder, **options)
        return loaded

    def empty(self) -> PreTrainedModel:
        """The model without memory."""
        with torch.device("meta"):
            if issubclass(self.maker, _BaseAutoModelClass):
                made: PreTrainedModel = self.maker.from_config(self.config, trust_remote_code=self.trust_remote_code)
                return made
            return self.maker(self.config)

    def text_alone(self) -> Architecture | None:
        """The part that generates text, of a model that sees or hears as well; None: it has no such part."""
        text = self.config.get_text_config(decoder=True)
        if text is self.config or type(text) not in AutoModelForCausalLM._model_mapping:
            return None
        return replace(self, config=text, maker=AutoModelForCausalLM, names=_TEXT_TENSORS)


def is_headless(raw: Mapping[str, Any], config: PretrainedConfig) -> bool:
    """Whether a checkpoint has neither a head nor an embedding that could be one."""
    return lacks_head(raw) and not config.get_text_config(decoder=True).tie_word_embeddings


def brief(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _config(folder: Path, raw: Mapping[str, Any], trust_remote_code: bool) -> PretrainedConfig:
    where, is_known = folder / "config.json", raw.get("model_type") in transformers.CONFIG_MAPPING
    if raw.get("auto_map") and not trust_remote_code and not is_known:
        raise CheckpointError(
            f"{where}: architecture {_named(raw)} comes with code of its own, which runs only with "
            "trust_remote_code = true"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # whatever a config class, or code of the checkpoint, raises
        if is_known:
            raise CheckpointError(f"{where}: {brief(error)}") from error
        raise CheckpointError(
            f"{where}: architecture {_named(raw)} is not supported: neither Baton nor transformers "
            f"{transformers.__version__} knows it"
        ) from None


def _takes(model_class: Any, config: PretrainedConfig) -> bool:
    """Whether the class makes a model of that config that goes on with a text by itself."""
    decodes = model_class.can_generate() and not config.is_encoder_decoder
    return decodes and model_class.config_class is type(config)


def _named(raw: Mapping[str, Any]) -> str:
    return ", ".join(map(str, raw.get("architectures") or ())) or f"of model_type {raw.get('model_type')!r}"
