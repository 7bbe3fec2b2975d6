// Numbers for people.

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const MEMORY_UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const RATE_UNITS = ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"];

/** 12,345 */
export const count = (value) => NUMBER.format(value);

/** "1 worker", "2 workers" */
export const counted = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** About three digits: 0.42, 4.2, 42, 420, 4.2k */
export function short(value) {
  if (value >= 1e6) return `${digits(value / 1e6)}M`;
  if (value >= 1e4) return `${digits(value / 1e3)}k`;
  return value >= 100 || Number.isInteger(value) ? count(value) : digits(value);
}

/** Memory, in powers of 1024. */
export const bytes = (value) => scaled(value, 1024, MEMORY_UNITS);

/** A data rate, in powers of 1000, as networks are sold. */
export const bytesPerS = (value) => scaled(value, 1000, RATE_UNITS);

export function seconds(value) {
  if (value < 1) return `${value < 0.01 ? digits(value * 1000) : Math.round(value * 1000)} ms`;
  return value < 100 ? `${digits(value)} s` : `${Math.round(value / 60)} min`;
}

export const percent = (share) => `${Math.round(share * 100)}%`;

function scaled(value, base, units) {
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= base;
    unit += 1;
  }
  return `${unit ? digits(value) : count(value)} ${units[unit]}`;
}

function digits(value) {
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(value % 1 < 0.05 ? 0 : 1) : value.toFixed(value === 0 ? 0 : value < 1 ? 2 : 1);
}
