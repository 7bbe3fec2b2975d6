// From snapshots of the cluster to what is drawn: what is there now, and rates between two snapshots.

const KEPT = 120; // samples: two minutes, at one a second
const LONGEST_GAP_S = 10; // a longer silence says nothing about the rate in between

export class Series {
  constructor() {
    this.samples = [];
    this.last = null;
  }

  /** Take a snapshot (the body of /v1/loads). */
  add(snapshot) {
    const gap = this.last ? snapshot.time - this.last.time : Infinity;
    const passed = gap > 0 && gap < LONGEST_GAP_S ? between(this.last, snapshot) : null;
    this.samples.push(sample(snapshot, passed, gap));
    if (this.samples.length > KEPT) this.samples.shift();
    this.last = snapshot;
  }

  /** Nothing is known of this second. */
  addGap() {
    if (!this.samples.length) return;
    this.samples.push({});
    if (this.samples.length > KEPT) this.samples.shift();
  }

  /** Values of one figure, oldest first; null where it is not known. */
  of(name) {
    return this.samples.map((entry) => entry[name] ?? null);
  }

  get length() {
    return KEPT;
  }
}

/** What all workers together have done between two snapshots. One that was started again counts from its start. */
function between(before, after) {
  const known = new Map(before.workers.map((worker) => [worker.worker, worker]));
  const sums = {};
  for (const { worker, epoch, totals } of after.workers) {
    const old = known.get(worker);
    if (!old) continue; // it may have worked for hours before this router met it
    for (const [name, value] of Object.entries(totals)) {
      sums[name] = (sums[name] ?? 0) + value - (old.epoch === epoch ? old.totals[name] : 0);
    }
  }
  return sums;
}

function sample(snapshot, passed, gap) {
  const pages = snapshot.workers.reduce((sum, worker) => sum + usable(worker), 0);
  const free = snapshot.workers.reduce((sum, worker) => sum + worker.pages.free + worker.pages.cached, 0);
  const now = {
    inFlight: snapshot.router.in_flight,
    queued: snapshot.router.queued + snapshot.workers.reduce((sum, worker) => sum + worker.waiting, 0),
    pagesUsed: pages ? Math.max(0, 1 - free / pages) : null,
  };
  if (!passed) return now;
  return {
    ...now,
    extendPerS: (passed.extend_tokens ?? 0) / gap,
    cachedPerS: (passed.cached_tokens ?? 0) / gap,
    decodePerS: (passed.decode_tokens ?? 0) / gap,
    handoffPerS: (passed.handoff_bytes ?? 0) / gap,
    handoffs: passed.handoffs ?? 0,
    overlap: passed.handoff_s > 0 ? Math.min(1, passed.handoff_hidden_s / passed.handoff_s) : null,
  };
}

const RESERVED_PAGES = 2; // no request gets those

/** Pages that requests can have. */
export const usable = (worker) => Math.max(0, worker.pages.total - RESERVED_PAGES);
