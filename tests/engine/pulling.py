"""What agents and routers do when engines pull from each other: bytes are copied between their pools."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from engine_harness import Harness, prompt

from baton.core.attempt import Attempt
from baton.engine.api import Loan


def computed(harness: Harness) -> int:
    return sum(step.extend_tokens for step in harness.steps)


def move(source: Harness, loan: Loan, reader: Harness, attempt: Attempt) -> int:
    """Copy what was lent into the reserved pages, as agents do; returns the tokens that are there now."""
    reserved = reader.reserved[attempt]
    lent = loan.page_ids[reserved.first_page :]
    assert len(lent) <= len(reserved.page_ids)
    for theirs, own in zip(lent, reserved.page_ids, strict=False):
        reader.pool.tensor[:, own] = source.pool.tensor[:, theirs]
    return loan.tokens


def pull(source: Harness, reader: Harness, attempt: Attempt) -> int:
    """Returns the tokens that came."""
    loan = source.engine.lend(attempt, reader.reserved[attempt].block_hashes)
    tokens = move(source, loan, reader, attempt)
    source.engine.take_back(attempt)
    reader.engine.pulled(attempt, tokens)
    return tokens


def run_random_pulls(
    engines: Sequence[Harness],
    reference: Callable[[list[int], int], list[int]],
    seed: int,
    *,
    in_part: bool,
    requests: int = 100,
) -> int:
    """Small pools, shared prefixes, pulls that come whole, late, not at all, or `in_part`: tokens stay the reference's.
    Returns how many tokens were pulled. `requests`: how many there are."""
    choose = random.Random(seed)
    stems = [prompt(length, seed=7 + length) for length in range(12, 32)]
    expected: dict[tuple[int, Attempt], list[int]] = {}
    loans: list[tuple[int, Attempt]] = []
    for n in range(requests):
        at = choose.randrange(3)
        tokens = stems[(n + choose.randrange(3)) // 6] + prompt(choose.randint(1, 12), seed=n)
        wanted = choose.randint(8, len(tokens))
        attempt = engines[at].submit(f"r{n}", tokens, 6, pull_tokens=wanted)
        expected[at, attempt] = reference(tokens, 6)
        for _ in range(choose.randint(0, 24)):
            _event(choose, engines, expected, loans, in_part)
    for at, attempt in loans:
        engines[at].engine.take_back(attempt)
    for _ in range(40):
        for at, engine in enumerate(engines):
            engine.run()
            for attempt in _pulling(engine, expected, at):
                engine.engine.pulled(attempt, 0)
                del engine.reserved[attempt]
    for (at, attempt), tokens in expected.items():
        assert engines[at].outputs[attempt] == tokens
    for engine in engines:
        engine.assert_quiet()
    return sum(sum(engine.pulled.values()) for engine in engines)


def _pulling(engine: Harness, expected: dict[tuple[int, Attempt], list[int]], at: int) -> list[Attempt]:
    return [attempt for attempt in engine.reserved if (at, attempt) in expected]


def _event(
    choose: random.Random,
    engines: Sequence[Harness],
    expected: dict[tuple[int, Attempt], list[int]],
    loans: list[tuple[int, Attempt]],
    in_part: bool,
) -> None:
    at = choose.randrange(3)
    engine = engines[at]
    if engine.engine.has_work and choose.random() < 0.6:
        engine.step()
    elif loans and choose.random() < 0.3:
        lender, name = loans.pop()
        engines[lender].engine.take_back(name)
    elif waiting := _pulling(engine, expected, at):
        attempt = choose.choice(waiting)
        wanted = engine.reserved[attempt].block_hashes
        others = [(at + 1) % 3, (at + 2) % 3]
        source = next((other for other in others if engines[other].blocks.intersection(wanted)), others[0])
        if choose.random() < 0.1:
            engine.engine.cancel(attempt)
            del expected[at, attempt]
        loan = engines[source].engine.lend(attempt, wanted)
        loans.append((source, attempt))
        tokens = move(engines[source], loan, engine, attempt)
        held = engine.reserved[attempt].first_page * engine.pool.layout.page_size
        less = held if in_part else 0
        engine.engine.pulled(attempt, choose.choice([tokens, tokens, less, 0]) if tokens > held else 0)
        del engine.reserved[attempt]
