"""Pooling requests of models through `transformers`, against its own classes: embeddings, scores, classification."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers
from family_checkpoints import Checkpoint
from family_runs import tokens_of
from pooling_cases import EMBED, Asked, their_states, write_json
from transformers import GPT2ForSequenceClassification

from baton.core.errors import CheckpointError, InvalidRequest
from baton.core.pooling import PoolingParams, Task
from baton.engine.engine import EngineCore
from baton.engine.loading import load_runner, pooling_model
from baton.engine.model.through.runner import ThroughRunner
from baton.engine.plan import EngineConfig
from baton.engine.pool import KvPool

torch.set_num_threads(1)
TEXTS = [tokens_of(seed, length) for seed, length in ((1, 5), (2, 90), (3, 33))]
RAW = PoolingParams(Task.CLASSIFY, raw=True)


def asked(folder) -> Asked:
    runner = load_runner(folder)
    assert isinstance(runner, ThroughRunner)
    config = EngineConfig(max_running=8, max_batch_tokens=64, chunk_tokens=32)
    return Asked(EngineCore(runner, KvPool(runner.layout, 64), config, pooling=pooling_model(runner)))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


# Rows of a step together, and without a cache; a soft cap between states and logits.
@pytest.fixture(scope="module", params=["gpt2", "openai-gpt", "gemma4_text"])
def made(request, tmp_path_factory) -> Checkpoint:
    options = {"final_logit_softcapping": 2.0} if request.param == "gemma4_text" else {}
    return Checkpoint.tiny(tmp_path_factory.mktemp("pooling"), request.param, **options)


def test_embeddings_and_scores_beside_generation(made) -> None:
    engine = asked(made.folder)
    for ours, text in zip(engine.answers(TEXTS), TEXTS, strict=True):
        close(ours, F.normalize(their_states(made.folder, text)[-1], dim=0))
    params = PoolingParams(Task.SCORE, label_token_ids=(5, 9))
    for ours, text in zip(engine.answers(TEXTS, params), TEXTS, strict=True):
        torch.testing.assert_close(ours, made.logits(text)[-1].log_softmax(-1)[[5, 9]], atol=2e-4, rtol=1e-4)
    generation, embedding = engine.submit(TEXTS[0], None, tokens=5), engine.submit(TEXTS[1])
    vectors, tokens = engine.run()
    assert tokens[generation] == made.greedy(tuple(TEXTS[0]), 5)
    close(vectors[embedding], F.normalize(their_states(made.folder, TEXTS[1])[-1], dim=0))


@pytest.mark.parametrize("model_type", ["gpt2", "bloom"])
def test_a_model_without_a_head_embeds_by_the_mean(tmp_path, model_type: str) -> None:
    Checkpoint.tiny(tmp_path / "whole", model_type)
    body = transformers.AutoModel.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    body.save_pretrained(tmp_path / "body")
    write_json(tmp_path / "body" / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    engine = asked(tmp_path / "body")
    for ours, text in zip(engine.answers(TEXTS), TEXTS, strict=True):
        close(ours, F.normalize(their_states(tmp_path / "body", text).mean(0), dim=0))
    with pytest.raises(InvalidRequest, match="does not do task generate; it does: embed"):
        engine.submit(TEXTS[0], None)


def classifier(folder, model_type: str, labels: int) -> transformers.PreTrainedModel:
    Checkpoint.tiny(folder / "whole", model_type)
    torch.manual_seed(0)
    kind = transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(folder / "whole", num_labels=labels, dtype=torch.float32).eval()
    model.score.weight.data.normal_()
    model.save_pretrained(folder / "classifier")
    return model


@pytest.mark.parametrize(("model_type", "labels"), [("gpt2", 3), ("gptj", 1)])
@torch.inference_mode()
def test_classification_heads(tmp_path, model_type: str, labels: int) -> None:
    theirs = classifier(tmp_path, model_type, labels)
    engine = asked(tmp_path / "classifier")
    for params, activation in ((RAW, None), (PoolingParams(Task.CLASSIFY), torch.sigmoid if labels == 1 else None)):
        for ours, text in zip(engine.answers(TEXTS, params), TEXTS, strict=True):
            logits = theirs(torch.tensor([text])).logits[0]
            wanted = logits if params is RAW else activation(logits) if activation else logits.softmax(-1)
            torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(InvalidRequest, match="does not do task embed; it does: classify"):
        engine.submit(TEXTS[0], EMBED)


def test_heads_that_stand_on_more_than_the_last_token_are_refused(tmp_path, monkeypatch) -> None:
    classifier(tmp_path, "gpt2", 2)
    forward = GPT2ForSequenceClassification.forward

    def with_the_first(self, input_ids, **options):
        out = forward(self, input_ids, **options)
        out.logits = out.logits + input_ids[:, :1]
        return out

    monkeypatch.setattr(GPT2ForSequenceClassification, "forward", with_the_first)
    with pytest.raises(CheckpointError, match="stands on more than the last token's final hidden state"):
        load_runner(tmp_path / "classifier")


def test_a_model_that_cannot_be_parted_generates_only(tmp_path) -> None:
    made = Checkpoint.tiny(tmp_path, "codegen")
    engine = asked(tmp_path)
    generation = engine.submit(TEXTS[0], None, tokens=3)
    assert engine.run()[1][generation] == made.greedy(tuple(TEXTS[0]), 3)
    with pytest.raises(InvalidRequest, match="this engine generates only"):
        engine.submit(TEXTS[0])
