// Markdown inside a paragraph: code, emphasis, links. Everything becomes nodes by way of text, never markup.

import { h } from "./dom.js";

// Where several could begin at the same place, the first one counts. What they span is bounded, and emphasis ends where the
// same mark comes again: many opening marks without closing ones must not each cost a search to the end of the text.
const RULES = [
  { pattern: /(`+)(.{1,2000}?)\1(?!`)/gs, make: ([, , code]) => h("code", {}, code.trim() || code) },
  { pattern: /!?\[([^\]\n]{0,500})\]\(([^()\s]{1,2000}(?:\([^()\s]{0,500}\)[^()\s]{0,500})?)(?:\s+"[^"\n]{0,500}")?\)/g, make: ([all, text, to]) => link(to, text || to, all) },
  { pattern: /\*\*(?=\S)((?:[^*]|\*(?!\*)){1,2000})(?<=\S)\*\*/g, make: ([, text]) => h("strong", {}, ...inline(text)) },
  { pattern: /\*(?=[^\s*])([^*]{1,2000})(?<=\S)\*(?!\*)/g, make: ([, text]) => h("em", {}, ...inline(text)) },
  { pattern: /(?<![\p{L}\p{N}_])_(?=[^\s_])([^_]{1,2000})(?<=\S)_(?![\p{L}\p{N}_])/gu, make: ([, text]) => h("em", {}, ...inline(text)) },
  { pattern: /~~(?=\S)([^~]{1,2000})(?<=\S)~~/g, make: ([, text]) => h("s", {}, ...inline(text)) },
  { pattern: /https?:\/\/[^\s<>"'`]{0,2000}[^\s<>"'`.,;:!?)\]}]/g, make: ([to]) => link(to, to, to) },
  { pattern: /\\([\\`*_~[\](){}#+.!|>-])/g, make: ([, character]) => character },
  { pattern: / {2,}\n|\\\n/g, make: () => h("br") },
];

/** Nodes and texts for `source`. */
export function inline(source) {
  const nodes = [];
  const next = RULES.map((rule) => search(rule, source, 0));
  let at = 0;
  for (;;) {
    const rule = nearest(next);
    if (rule < 0) break;
    const match = next[rule];
    if (match.index > at) nodes.push(source.slice(at, match.index));
    nodes.push(RULES[rule].make(match));
    at = match.index + match[0].length;
    RULES.forEach((other, n) => {
      if (next[n] && next[n].index < at) next[n] = search(other, source, at);
    });
  }
  if (at < source.length) nodes.push(source.slice(at));
  return nodes;
}

function search({ pattern }, source, from) {
  pattern.lastIndex = from;
  return pattern.exec(source);
}

/** Which rule matches first; -1: none does any more. */
function nearest(next) {
  let best = -1;
  next.forEach((match, n) => {
    if (match && (best < 0 || match.index < next[best].index)) best = n;
  });
  return best;
}

/** A link to the web or to a mailbox; anything else, `javascript:` above all, stays the text that it is. */
function link(to, text, otherwise) {
  let url;
  try {
    url = new URL(to);
  } catch {
    return otherwise;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return otherwise;
  return h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, text);
}
