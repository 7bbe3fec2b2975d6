"""The judge of a chaos run: is every answer what it is without faults, and did everybody give back what it held?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.chaos.load import Answer
from tools.chaos.plan import Kind, PlannedFault

GRACE_S = 20.0  # after a gateway was struck, for this long its clients may find it lost


@dataclass(slots=True)
class Struck:
    """A fault as it was carried out. Times are monotonic; `note` says why it was not."""

    fault: PlannedFault
    at: float = 0.0
    ended_at: float = 0.0
    back_s: float | None = None  # from the strike until the process was ready again
    note: str = ""

    @property
    def carried_out(self) -> bool:
        return self.at > 0


@dataclass(slots=True)
class Judge:
    """Collects answers and faults. `reference`: (question number, asker) -> the undisturbed content."""

    reference: dict[tuple[int, str], str | list[int]]
    struck: list[Struck] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    right: int = 0
    wrong: int = 0
    lost_tokens: int = 0
    extra_tokens: int = 0
    broken: int = 0  # answers that ended by an error although no gateway was struck
    asked_again: int = 0  # answers cut off by the loss of the gateway
    memory_mb: dict[str, tuple[float, float]] = field(default_factory=dict)

    def keep(self, answer: Answer) -> None:
        self.answers.append(answer)
        if answer.error:
            self._judge_error(answer)
            return
        question = answer.question
        self.lost_tokens += max(0, question.max_tokens - answer.tokens)
        self.extra_tokens += max(0, answer.tokens - question.max_tokens)
        expected = self.reference[question.number, answer.by]
        if answer.content == expected and answer.tokens == question.max_tokens:
            self.right += 1
            return
        self.wrong += 1
        got, wanted = _difference(answer.content, expected)
        self.violations.append(
            f"question {question.number} by {answer.by} (temperature {question.temperature}): {answer.tokens} tokens "
            f"of {question.max_tokens}; differs at {got!r}, expected {wanted!r}"
        )

    def _judge_error(self, answer: Answer) -> None:
        if answer.lost_gateway and self._gateway_was_struck(answer.asked_at, answer.ended_at):
            self.asked_again += 1
            return
        self.broken += 1
        self.violations.append(f"question {answer.question.number} by {answer.by} failed: {answer.error}")

    def _gateway_was_struck(self, since: float, until: float) -> bool:
        return any(
            item.fault.target == "gateway"
            and item.at - GRACE_S <= until
            and item.at + item.fault.for_s + GRACE_S >= since
            for item in self.struck
            if item.carried_out and item.fault.kind in (Kind.KILL, Kind.RESTART, Kind.PARTITION, Kind.STOP)
        )

    def pause_s(self, item: Struck) -> float:
        """The longest silence that a client met while the fault lasted or its process came back."""
        until = max(item.ended_at, item.at + (item.back_s or 0.0))
        concerned = [answer for answer in self.answers if answer.asked_at <= until and answer.ended_at >= item.at]
        return max((answer.longest_silence(item.at, until) for answer in concerned), default=0.0)

    def check_memory(self, name: str, before_mb: float, after_mb: float, bound_mb: float) -> None:
        self.memory_mb[name] = (before_mb, after_mb)
        if after_mb > bound_mb:
            self.violations.append(
                f"{name} holds {after_mb:.0f} MB of its own, {before_mb:.0f} before; flat is up to {bound_mb:.0f}"
            )


def _difference(got: Sequence[object], expected: Sequence[object]) -> tuple[object, object]:
    """Both from shortly before the first place where they differ."""
    same = next(
        (n for n, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected))
    )
    start = max(0, same - 5)
    return got[start : start + 40], expected[start : start + 40]
