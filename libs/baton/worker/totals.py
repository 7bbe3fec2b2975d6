"""What a worker has done since it started: running sums for operators, sent with its load.

They are the same numbers for every router, so that whoever asks any of them can draw rates from two answers.
"""

from __future__ import annotations

from baton.engine.api import StepOutput
from baton.rpc.v1 import common_pb2
from baton.rpc.v1 import worker_pb2 as pb


class Totals:
    """`message` is kept up to date; who sends it later copies it. On one thread."""

    def __init__(self) -> None:
        self.message = common_pb2.WorkerTotals()

    def add_step(self, output: StepOutput) -> None:
        totals = self.message
        totals.extend_tokens += output.extend_tokens
        totals.decode_tokens += sum(len(row.token_ids) for row in output.rows)
        totals.preemptions += output.preempted
        for admitted in output.admitted:
            totals.cached_tokens += admitted.cached_tokens

    def add_handoff(self, report: pb.HandoffReport) -> None:
        totals = self.message
        totals.handoffs += 1
        totals.handoff_bytes += report.bytes
        totals.handoff_s += report.total_s
        totals.handoff_hidden_s += max(0.0, report.total_s - report.exposed_s)
