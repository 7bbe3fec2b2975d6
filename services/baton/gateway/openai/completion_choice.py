"""Which of the generated answers of a completion are shown: the best of several, or nothing but the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from baton.gateway.respond import Answer


def best_of(answers: Sequence[Answer], shown: int) -> list[Answer]:
    """The `shown` likeliest of each prompt's answers by their mean logprob per token, numbered anew, the best first."""
    chosen: list[Answer] = []
    for prompt in sorted({answer.choice.prompt for answer in answers}):
        own = [answer for answer in answers if answer.choice.prompt == prompt]
        chosen += sorted(own, key=_mean_logprob, reverse=True)[:shown]
    for index, answer in enumerate(chosen):
        answer.choice.index = index
    return chosen


def prompt_only(answers: Sequence[Answer]) -> list[Answer]:
    """Of answers that were to have no tokens: the engine always makes one, which is not the client's."""
    for answer in answers:
        answer.text, answer.tokens = "", []
        answer.choice.finish, answer.choice.completion_tokens = "length", 0
    return list(answers)


def _mean_logprob(answer: Answer) -> float:
    logprobs = [token.logprobs.logprob for token in answer.tokens]
    return sum(logprobs) / len(logprobs) if logprobs else 0.0
