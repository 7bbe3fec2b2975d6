// What this browser remembers, under `baton.*`. A browser that keeps nothing is no error: the page works without.

function read(store, name, fallback) {
  try {
    const text = store().getItem(`baton.${name}`);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

function write(store, name, value) {
  try {
    if (value === null) store().removeItem(`baton.${name}`);
    else store().setItem(`baton.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false; // full, or forbidden
  }
}

const local = () => localStorage; // functions: the mere access may throw
const session = () => sessionStorage;

/** Kept until it is removed. Both return quickly and never throw; `save` says whether it could. */
export const load = (name, fallback = null) => read(local, name, fallback);
export const save = (name, value) => write(local, name, value);

/** The API key: for this tab, and for longer only where that was asked for. */
export const loadKey = () => read(session, "key", null) ?? load("key") ?? "";
export const isKeyRemembered = () => load("key") !== null;

export function saveKey(key, remember) {
  write(session, "key", key || null);
  save("key", remember && key ? key : null);
}
