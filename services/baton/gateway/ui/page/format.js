// Numbers for people.

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const BYTE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

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

export function bytes(value) {
  let unit = 0;
  while (value >= 1000 && unit < BYTE_UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit ? digits(value) : count(value)} ${BYTE_UNITS[unit]}`;
}

export function seconds(value) {
  if (value < 1) return `${digits(value * 1000)} ms`;
  return value < 100 ? `${digits(value)} s` : `${Math.round(value / 60)} min`;
}

export const percent = (share) => `${Math.round(share * 100)}%`;

function digits(value) {
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(value % 1 < 0.05 ? 0 : 1) : value.toFixed(value === 0 ? 0 : value < 1 ? 2 : 1);
}
