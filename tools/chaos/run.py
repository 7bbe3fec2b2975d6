"""One chaos run from start to verdict: reference answers, load and faults side by side, then quiet and the books."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from baton.client import BatonClient
from tools.chaos.cluster import MODEL, Cluster, cluster
from tools.chaos.judge import Judge, Struck
from tools.chaos.load import ANSWER_TIMEOUT_S, Asker, GrpcAsker, HttpAsker, Load, Question, questions
from tools.chaos.plan import Kind, PlannedFault, make_plan
from tools.chaos.report import Run, figures

PROGRESS_S = 10.0
WARM_UP_S = 8.0  # of load before the first fault: caches, buffers and allocators take what they need
# A process may end with this much more own memory than its kind has at first. The slack is what oneDNN's code for
# prompts of all lengths takes (baton.engine.cpu.linear), which a short warm-up does not show: 135 to 150 MB measured.
GROWTH, SLACK_MB = 1.25, 160.0


async def chaos(
    options: argparse.Namespace, kinds: Sequence[Kind], left_out: dict[Kind, str], folder: Path, command: str
) -> dict[str, Any]:
    """Carry out the run; returns the figures of its report."""
    started = time.monotonic()
    reasons = {kind.value: reason for kind, reason in left_out.items()}
    run = Run(options.seed, options.minutes, options.transport, command, reasons, _machine())
    say(f"seed {options.seed}: starting the system")
    with cluster(folder, options.transport) as target:
        plan = make_plan(options.seed, 60 * options.minutes, target.names, target.agents, kinds, options.gap)
        async with _askers(target, options) as askers:
            judge = Judge(await _reference(askers, questions(options.seed)))
            await _disturb(target, judge, plan, Load(askers, questions(options.seed), options.seed, judge.keep))
        run.outcomes = target.outcomes()
    run.seconds = time.monotonic() - started
    return figures(run, judge)


@asynccontextmanager
async def _askers(target: Cluster, options: argparse.Namespace) -> AsyncIterator[list[Asker]]:
    """One by gRPC, the others by HTTP."""
    router = target.system.service("router")["address"]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(BatonClient([router]))
        askers: list[Asker] = [GrpcAsker(client, MODEL, options.seed)]
        for _ in range(options.clients - 1):
            http = httpx.AsyncClient(base_url=target.system.url, timeout=ANSWER_TIMEOUT_S)
            askers.append(HttpAsker(await stack.enter_async_context(http), MODEL))
        yield askers


async def _reference(askers: list[Asker], asked: list[Question]) -> dict[tuple[int, str], str | list[int]]:
    """The answers of the undisturbed system, by gRPC and by HTTP."""
    say(f"asking {len(asked)} questions without faults")
    found: dict[tuple[int, str], str | list[int]] = {}

    async def ask_all(asker: Asker) -> None:
        for question in asked:
            answer = await asker.ask(question)
            if answer.error or answer.tokens != question.max_tokens:
                raise RuntimeError(f"question {question.number} has no answer without faults: {answer.error}")
            found[question.number, asker.name] = answer.content

    await asyncio.gather(*(ask_all(asker) for asker in askers[:2]))
    return found


async def _disturb(target: Cluster, judge: Judge, plan: list[PlannedFault], load: Load) -> None:
    load.start()
    await asyncio.sleep(WARM_UP_S)
    before = target.own_memory_mb()
    progress = asyncio.create_task(_show_progress(judge, len(plan)))
    try:
        await _carry_out(target, judge, plan)
        say("faults are over: everybody comes back, clients finish")
        await target.all_back()
        await load.stop()
        judge.violations += [f"not given back: {text}" for text in await target.unbalanced()]
    except AssertionError as error:  # of Up.wait: something did not come back
        judge.violations.append(str(error)[:2000])
    finally:
        progress.cancel()
    for name, after_mb in target.own_memory_mb().items():
        # A worker that has had no long prompt yet is small: what counts is the largest of its kind.
        most_mb = max(mb for other, mb in before.items() if target.kind(other) == target.kind(name))
        judge.check_memory(name, before.get(name, 0.0), after_mb, GROWTH * most_mb + SLACK_MB)


async def _carry_out(target: Cluster, judge: Judge, plan: list[PlannedFault]) -> None:
    """Strike at the planned times; faults that last, and the return of what was killed, overlap with the next ones."""
    started = time.monotonic()
    strikes: list[asyncio.Task[None]] = []
    for fault in plan:
        await asyncio.sleep(max(0.0, started + fault.at_s - time.monotonic()))
        say(f"{fault.at_s:7.1f} s  {fault}")
        struck = Struck(fault)
        judge.struck.append(struck)
        strikes.append(asyncio.create_task(target.strike(struck)))
    ends = await asyncio.gather(*strikes, return_exceptions=True)
    judge.violations += [str(end)[:2000] for end in ends if isinstance(end, BaseException)]


async def _show_progress(judge: Judge, planned: int) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        bad = (
            f", {len(judge.violations)} VIOLATIONS, the last: {judge.violations[-1][:200]}" if judge.violations else ""
        )
        say(f"           {len(judge.struck)}/{planned} faults, {judge.right} right answers{bad}")


def say(text: str) -> None:
    print(f"chaos {time.strftime('%H:%M:%S')}  {text}", flush=True)


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
