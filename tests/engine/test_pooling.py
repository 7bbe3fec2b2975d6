"""Pooling requests of causal models, against transformers' own code: embeddings, label scores, classification heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pooling_cases import (
    EMBED,
    Asked,
    engine_of,
    make_checkpoint,
    saved_as,
    sentence_transformer,
    their_states,
    tokens_of,
    write_json,
)

from baton.core.attempt import Attempt
from baton.core.errors import CheckpointError, InternalError, InvalidRequest, PromptTooLong
from baton.core.pooling import PoolingParams, Task
from baton.core.sampling import SamplingParams
from baton.engine import Engine
from baton.engine.api import EngineRequest
from baton.engine.plan import EngineConfig

torch.set_num_threads(1)
PROMPTS = [tokens_of(seed, length) for seed, length in ((1, 5), (2, 90), (3, 33), (4, 16), (5, 64))]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("llama"))


def folder_of(shape: str, tmp_path):
    """Checkpoints as the models of that name are stored."""
    if shape.startswith("e5-mistral"):  # a base model: no head, tensors without the prefix
        saved = saved_as("AutoModel", make_checkpoint(tmp_path / "made", "mistral"), tmp_path / "saved")
        return sentence_transformer(saved, "Normalize") if shape.endswith("modules") else saved
    if shape == "Qwen3-Embedding":  # named after the causal model, stored without a head
        made = make_checkpoint(tmp_path / "made", "qwen3", tied=True)
        saved = saved_as("AutoModel", made, tmp_path / "saved")
        write_json(saved / "config.json", {**_json(saved), "architectures": ["Qwen3ForCausalLM"]})
        return sentence_transformer(saved, "Normalize")
    return make_checkpoint(tmp_path / "made", "qwen2")  # any model that generates


def _json(folder):
    import json

    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("shape", ["e5-mistral", "e5-mistral, with modules", "Qwen3-Embedding", "generating"])
def test_embeddings_of_the_last_token(shape: str, tmp_path) -> None:
    folder = folder_of(shape, tmp_path)
    engine = engine_of(folder)
    for ours, prompt in zip(Asked(engine).answers(PROMPTS), PROMPTS, strict=True):
        close(ours, F.normalize(their_states(folder, prompt)[-1], dim=0))
    engine.audit()
    generates = not shape.startswith("e5-mistral")
    assert (Task.GENERATE in engine._pooling.pooler.tasks) is generates
    if not generates:
        with pytest.raises(InvalidRequest, match="does not do task generate; it does: embed"):
            Asked(engine).submit(PROMPTS[0], None)


def test_a_prefix_is_reused_where_only_the_last_token_counts(llama) -> None:
    shared = tokens_of(9, 64)
    prompts = [[*shared, *tokens_of(seed, 7)] for seed in (1, 2)]
    asked = Asked(engine_of(llama))
    first = asked.answers(prompts[:1])
    [second] = asked.answers(prompts[1:])
    assert list(asked.cached.values()) == [0, 64]
    close(first[0], F.normalize(their_states(llama, prompts[0])[-1], dim=0))
    close(second, F.normalize(their_states(llama, prompts[1])[-1], dim=0))


def test_mean_pooling_needs_all_tokens_and_leaves_the_cache_to_others(llama, tmp_path) -> None:
    folder = sentence_transformer(copy(llama, tmp_path), pooling="mean_tokens")
    asked = Asked(engine_of(folder))
    shared = tokens_of(9, 64)
    prompts = [[*shared, *tokens_of(seed, 20)] for seed in (1, 2)]
    for prompt in prompts:
        [ours] = asked.answers([prompt])
        close(ours, their_states(folder, prompt).mean(0))  # modules.json names no Normalize
    assert list(asked.cached.values()) == [0, 0]
    generation = asked.submit([*shared, 7], None)
    asked.run()
    assert asked.cached[generation] == 64


def test_pooling_shares_steps_with_generation(llama) -> None:
    """Vectors and tokens are those of each alone, and some step has held both kinds of rows."""
    alone = {tuple(prompt): Asked(engine_of(llama)).answers([prompt])[0] for prompt in PROMPTS}
    generator = Asked(engine_of(llama))
    attempts = [generator.submit(prompt, None) for prompt in PROMPTS]
    _, tokens_alone = generator.run()
    engine = engine_of(llama)
    asked = Asked(engine)
    pairs = [(asked.submit(prompt[::-1]), asked.submit(prompt, None)) for prompt in PROMPTS]
    pooling = {asked.submit(prompt): tuple(prompt) for prompt in PROMPTS}
    vectors, tokens = asked.run()
    engine.audit()
    assert [tokens[attempt] for _, attempt in pairs] == [tokens_alone[attempt] for attempt in attempts]
    for attempt, prompt in pooling.items():
        close(vectors[attempt], alone[prompt])
    kinds = [{row.vector is None for row in step.rows} for step in asked.steps]
    assert {True, False} in kinds


def test_prompt_logprobs_beside_pooling(llama) -> None:
    """Their logits are found among those of a step that holds pooling rows before them."""

    def logprobs(pooling: list[list[int]]) -> tuple[list[float], list[int]]:
        asked = Asked(engine_of(llama))
        for prompt in pooling:
            asked.submit(prompt)
        sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        asked.engine.submit(EngineRequest(Attempt("logprobs", 0), PROMPTS[3], len(PROMPTS[3]), sampling, b""))
        asked.run()
        [row] = [row for step in asked.steps for row in step.rows if row.vector is None]
        return [entry.logprob for entry in row.prompt_logprobs], row.token_ids

    alone, beside = logprobs([]), logprobs(PROMPTS[:1])
    assert alone[0] == pytest.approx(beside[0], abs=1e-5) and alone[1] == beside[1]


@pytest.mark.parametrize("overlap", [False, True])
def test_preempted_in_the_middle_of_its_text(llama, tmp_path, overlap: bool) -> None:
    """A generation grows into pages of a pooling request, which begins anew; nothing is lost or counted twice."""
    folder = sentence_transformer(copy(llama, tmp_path), pooling="mean_tokens")
    config = EngineConfig(max_running=8, max_batch_tokens=40, chunk_tokens=16, overlap=overlap)
    engine = engine_of(folder, pages=24, config=config)  # two of which are nobody's
    asked = Asked(engine)
    generation = asked.submit(tokens_of(6, 15), None, tokens=40)
    prompt = tokens_of(7, 320)
    pooling = asked.submit(prompt)  # 20 chunks, and as many pages; one is left for the generation, which needs three
    vectors, tokens = asked.run()
    assert sum(step.preempted for step in asked.steps) == 1
    assert sum(step.extend_tokens for step in asked.steps) > 400
    close(vectors[pooling], their_states(llama, prompt).mean(0))
    assert len(tokens[generation]) == 40
    engine.audit()
    engine.close()


def test_cancelled_pooling_gives_its_pages_back(llama) -> None:
    engine = engine_of(llama)
    asked = Asked(engine)
    free = engine.load().free_pages
    attempt = asked.submit(PROMPTS[1])
    engine.step()
    assert engine.load().free_pages < free
    assert engine.cancel(attempt)
    vectors, _ = asked.run()
    assert not vectors
    assert engine.load().free_pages + engine.load().evictable_pages == free
    engine.audit()


def test_dimensions_and_raw(llama) -> None:
    asked = Asked(engine_of(llama))
    state = their_states(llama, PROMPTS[0])[-1]
    [cut] = asked.answers(PROMPTS[:1], replace(EMBED, dimensions=24))
    close(cut, F.normalize(state[:24], dim=0))
    [raw] = asked.answers(PROMPTS[:1], replace(EMBED, raw=True))
    close(raw, state)
    with pytest.raises(InvalidRequest, match=r"dimensions is 65; .* have 64"):
        asked.submit(PROMPTS[0], replace(EMBED, dimensions=65))


def test_dimensions_that_the_checkpoint_names(llama, tmp_path) -> None:
    folder = copy(llama, tmp_path)
    write_json(folder / "config.json", {**_json(folder), "matryoshka_dimensions": [16, 32]})
    asked = Asked(engine_of(folder))
    assert len(asked.answers(PROMPTS[:1], replace(EMBED, dimensions=32))[0]) == 32
    with pytest.raises(InvalidRequest, match="was trained for 16, 32"):
        asked.submit(PROMPTS[0], replace(EMBED, dimensions=24))


def test_projections_after_pooling(llama, tmp_path) -> None:
    from safetensors.torch import save_file

    folder = sentence_transformer(copy(llama, tmp_path), "Dense", "Normalize")
    weight, bias = torch.randn(20, 64), torch.randn(20)
    dense = folder / "2_Dense"
    write_json(dense / "config.json", {"in_features": 64, "out_features": 20, "bias": True,
                                       "activation_function": "torch.nn.modules.activation.Tanh"})  # fmt: skip
    save_file({"linear.weight": weight, "linear.bias": bias}, dense / "model.safetensors")
    [ours] = Asked(engine_of(folder)).answers(PROMPTS[:1])
    close(ours, F.normalize((their_states(folder, PROMPTS[0])[-1] @ weight.T + bias).tanh(), dim=0))


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
@pytest.mark.parametrize("labels", [1, 3])
def test_classification_heads(family: str, labels: int, tmp_path) -> None:
    """A reward model has one label, and is asked for the logit itself."""
    made = make_checkpoint(tmp_path / "made", family)
    folder = saved_as("AutoModelForSequenceClassification", made, tmp_path / "saved", num_labels=labels)
    from transformers import AutoModelForSequenceClassification

    theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    engine = engine_of(folder)
    assert engine._pooling.pooler.tasks == {Task.CLASSIFY}
    with torch.inference_mode():
        logits = [theirs(torch.tensor([prompt])).logits[0] for prompt in PROMPTS]
    classify = PoolingParams(Task.CLASSIFY)
    for ours, expected in zip(Asked(engine).answers(PROMPTS, replace(classify, raw=True)), logits, strict=True):
        close(ours, expected)
    for ours, expected in zip(Asked(engine).answers(PROMPTS, classify), logits, strict=True):
        close(ours, expected.sigmoid() if labels == 1 else expected.softmax(0))


def test_classification_head_of_the_text_part_of_a_model_that_sees(tmp_path) -> None:
    from transformers import Qwen3_5Config, Qwen3_5ForSequenceClassification

    text = {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16,
        "num_attention_heads": 2, "num_key_value_heads": 1, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "pad_token_id": 0,
    }  # fmt: skip
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen3_5Config(text_config=text, vision_config=sight, num_labels=3)
    torch.manual_seed(0)
    theirs = Qwen3_5ForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    classify = PoolingParams(Task.CLASSIFY, raw=True)
    for ours, prompt in zip(Asked(engine_of(tmp_path)).answers(PROMPTS, classify), PROMPTS, strict=True):
        with torch.inference_mode():
            close(ours, theirs(torch.tensor([prompt])).logits[0])


def test_label_scores_are_logprobs_of_the_next_token(llama) -> None:
    from transformers import AutoModelForCausalLM

    labels = (17, 300, 8)
    ours = Asked(engine_of(llama)).answers(PROMPTS, PoolingParams(Task.SCORE, label_token_ids=labels))
    theirs = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    for vector, prompt in zip(ours, PROMPTS, strict=True):
        with torch.inference_mode():
            logprobs = theirs(torch.tensor([prompt])).logits[0, -1].log_softmax(0)
        close(vector, logprobs[list(labels)])


def test_in_ones_own_process(llama) -> None:
    with Engine(llama) as engine:
        texts = ["The baton is passed.", "Nobody could say whose it is."]
        ids = [engine._tokenizer.encode(text).ids for text in texts]
        both = engine.embed(texts)
        assert engine.embed(ids) == both and engine.embed(ids[0]) == engine.embed(texts[0])
        close(torch.tensor(both[1]), F.normalize(their_states(llama, ids[1])[-1], dim=0))
        assert len(engine.embed(texts[0], dimensions=5)) == 5
        assert engine.score(texts, [9])[0] == engine.score(texts[0], [9]) and engine.score(texts[0], [9])[0] < 0
        with pytest.raises(InvalidRequest, match="task classify"):
            engine.classify(texts)
        assert engine.generate(texts[0], {"max_new_tokens": 2})["meta_info"]["completion_tokens"] == 2


def test_limits(llama) -> None:
    asked = Asked(engine_of(llama, pages=400, config=EngineConfig(max_batch_tokens=4096, chunk_tokens=4096)))
    [whole] = asked.answers([tokens_of(1, 4096)])
    assert len(whole) == 64
    with pytest.raises(PromptTooLong, match="4097 tokens; the limit is 4096"):
        asked.submit(tokens_of(1, 4097))
    with pytest.raises(InvalidRequest, match="empty"):
        asked.submit([])
    with pytest.raises(InvalidRequest, match="task classify"):
        asked.submit(PROMPTS[0], PoolingParams(Task.CLASSIFY))
    with pytest.raises(InvalidRequest, match="label token id"):
        asked.submit(PROMPTS[0], PoolingParams(Task.SCORE, label_token_ids=(512,)))


def test_answers_that_are_not_finite_fail(llama) -> None:
    asked = Asked(engine_of(llama))
    pooler = asked.engine._pooling.pooler
    asked.engine._pooling.pooler = replace(pooler, dense=(lambda x: x / 0,))
    with pytest.raises(InternalError, match="not finite"):
        asked.answers(PROMPTS[:1])


@pytest.mark.parametrize(
    ("pooling", "module", "message"),
    [("max_tokens", "Normalize", "pooling by"), ("mean_tokens", "WordWeights", "WordWeights is not supported")],
)
def test_unknown_poolings_are_refused(llama, tmp_path, pooling: str, module: str, message: str) -> None:
    folder = sentence_transformer(copy(llama, tmp_path), module, pooling=pooling)
    with pytest.raises(CheckpointError, match=message):
        engine_of(folder)


def copy(folder, target):
    import shutil

    return shutil.copytree(folder, target / "copy")
