"""Training: batches, a falling loss, resuming, and an exported checkpoint that `transformers` reads alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tools.bundled_model import tokenizer
from tools.bundled_model.batches import Batch, Stage, batches, held_out_batch, make_batch
from tools.bundled_model.cases import by_skill
from tools.bundled_model.checkpoint import load_model, save_model
from tools.bundled_model.encoding import ChatEncoder
from tools.bundled_model.evaluation import evaluate
from tools.bundled_model.generation import greedy
from tools.bundled_model.model import ModelShape
from tools.bundled_model.optimizer import orthogonalized
from tools.bundled_model.recipes import Recipe
from tools.bundled_model.training import Trainer

STAGES = (Stage(0.5, (64,), (1.0,)), Stage(1.0, (64, 128), (1.0, 1.0)))


@pytest.fixture(scope="module")
def recipe(encoder: ChatEncoder) -> Recipe:
    shape = ModelShape(encoder.vocab_size, 32, 64, 2, 4, 2, 8)
    return Recipe(shape, steps=12, tokens=512, lr=1e-2, embedding_lr=1e-2, warmup=2, stages=STAGES)


def _trained(recipe: Recipe, encoder: ChatEncoder, steps: int, folder: Path | None = None) -> Trainer:
    trainer = Trainer(recipe, 0, torch.device("cpu"), bf16=False)
    if folder is not None:
        assert trainer.load(folder)
    for batch in batches(encoder, trainer.plan(), trainer.step, workers=0):
        if trainer.step == steps:
            break
        trainer.train_step(batch)
    return trainer


def test_batches_depend_on_seed_and_step_alone(encoder: ChatEncoder, recipe: Recipe) -> None:
    plan = Trainer(recipe, 0, torch.device("cpu"), bf16=False).plan()
    first, again, next_one = (make_batch(encoder, plan, step) for step in (3, 3, 4))
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.positions, again.positions)
    assert first.ids.shape != next_one.ids.shape or not torch.equal(first.ids, next_one.ids)
    assert first.ids.numel() <= plan.tokens


def test_only_what_the_assistant_says_is_learned(encoder: ChatEncoder) -> None:
    batch = held_out_batch(encoder, 1, 4, 128)
    flat = batch.ids.flatten()
    assert torch.equal(flat[batch.sources + 1], batch.targets)
    assert set(flat[batch.sources][batch.turns.diff(prepend=torch.tensor([-1])) != 0].tolist()) == {
        encoder.assistant_id
    }
    assert (batch.targets == encoder.end_id).sum() == len(batch.skills)


def test_positions_rise_and_stay_in_the_context(encoder: ChatEncoder, recipe: Recipe) -> None:
    plan = replace(
        Trainer(recipe, 0, torch.device("cpu"), bf16=False).plan(), stages=(Stage(1.0, (64,), (1.0,), gaps=1.0),)
    )
    furthest = 0
    for step in range(6):
        batch = make_batch(encoder, plan, step)
        filled = batch.ids != encoder.pad_id
        steps = batch.positions.diff(dim=1)[filled[:, 1:]]
        assert steps.min() >= 1
        furthest = max(furthest, int(batch.positions.max()))
    assert plan.context_tokens // 4 < furthest < plan.context_tokens


def test_loss_falls_and_resuming_changes_nothing(encoder: ChatEncoder, recipe: Recipe, tmp_path: Path) -> None:
    watched = held_out_batch(encoder, 1, 8, 64)
    untrained = Trainer(recipe, 0, torch.device("cpu"), bf16=False).evaluate([watched]).loss
    whole = _trained(recipe, encoder, 12)
    _trained(recipe, encoder, 5).save(tmp_path)
    resumed = _trained(recipe, encoder, 12, tmp_path)
    assert whole.evaluate([watched]).loss < untrained - 0.5
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_checkpoint_of_another_recipe_is_refused(encoder: ChatEncoder, recipe: Recipe, tmp_path: Path) -> None:
    Trainer(recipe, 0, torch.device("cpu"), bf16=False).save(tmp_path)
    with pytest.raises(ValueError, match="another recipe or seed"):
        Trainer(recipe, 1, torch.device("cpu"), bf16=False).load(tmp_path)


def test_exported_folder_has_the_same_logits_in_transformers(
    encoder: ChatEncoder, recipe: Recipe, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    save_model(_trained(recipe, encoder, 3).model, tmp_path, end_id=encoder.end_id, pad_id=encoder.pad_id)
    tokenizer.save(encoder.tokenizer, tmp_path, 4096)
    ours = load_model(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, encoder.vocab_size, (2, 300), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        mine = ours.logits(ours.hidden(ids, torch.arange(300).expand_as(ids)))
        torch.testing.assert_close(mine, theirs(ids).logits, rtol=1e-4, atol=1e-4)
    prompts = [ids[0, :40].tolist(), ids[1, :7].tolist(), ids[1, :23].tolist()]
    for prompt, made in zip(prompts, greedy(ours, prompts, encoder.end_id, 12), strict=True):
        generated = theirs.generate(torch.tensor([prompt]), max_new_tokens=12)[0, len(prompt) :].tolist()
        assert made == [token for token in generated if token != encoder.end_id]


def test_untrained_model_scores_nothing(encoder: ChatEncoder, recipe: Recipe) -> None:
    model = Trainer(recipe, 0, torch.device("cpu"), bf16=False).model
    cases = {skill: made for skill, made in by_skill(1, 2).items() if skill in ("add", "spell")}
    scores, mistakes = evaluate(model, encoder, cases)
    assert [score.right for score in scores.values()] == [0, 0]
    assert len(mistakes) == 4


def test_orthogonalized_updates_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    for shaped in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalized(shaped).float())
        assert values.min() > 0.5 and values.max() < 1.4


def test_a_moved_batch_keeps_its_skills(encoder: ChatEncoder) -> None:
    batch = held_out_batch(encoder, 2, 2, 64)
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, Batch)
    assert moved.skills == batch.skills


def test_batches_made_by_other_processes_are_the_same(encoder: ChatEncoder, recipe: Recipe) -> None:
    plan = Trainer(recipe, 0, torch.device("cpu"), bf16=False).plan()
    alone = list(batches(encoder, plan, 8, workers=0))
    helped = list(batches(encoder, plan, 8, workers=2))
    assert len(alone) == len(helped) == plan.steps - 8
    assert all(torch.equal(a.ids, b.ids) and a.skills == b.skills for a, b in zip(alone, helped, strict=True))
