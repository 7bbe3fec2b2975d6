// Markdown inside a paragraph: code, emphasis, links. Everything becomes nodes by way of text, never markup.

import { h } from "./dom.js";

// In order of precedence; each is tried where it may begin.
const RULES = [
  { pattern: /(`+)(.+?)\1(?!`)/s, make: ([, , code]) => h("code", {}, code.trim() || code) },
  { pattern: /!?\[([^\]\n]*)\]\(([^()\s]+(?:\([^()\s]*\)[^()\s]*)*)(?:\s+"[^"]*")?\)/, make: ([all, text, to]) => link(to, text || to, all) },
  { pattern: /\*\*(?=\S)(.+?)(?<=\S)\*\*/s, make: ([, text]) => h("strong", {}, ...inline(text)) },
  { pattern: /\*(?=[^\s*])(.+?)(?<=[^\s*])\*(?!\*)/s, make: ([, text]) => h("em", {}, ...inline(text)) },
  { pattern: /(?<![\p{L}\p{N}_])_(?=[^\s_])(.+?)(?<=[^\s_])_(?![\p{L}\p{N}_])/su, make: ([, text]) => h("em", {}, ...inline(text)) },
  { pattern: /~~(?=\S)(.+?)(?<=\S)~~/s, make: ([, text]) => h("s", {}, ...inline(text)) },
  { pattern: /https?:\/\/[^\s<>"'`]+[^\s<>"'`.,;:!?)\]}]/, make: ([to]) => link(to, to, to) },
  { pattern: /\\([\\`*_~[\](){}#+.!|>-])/, make: ([, character]) => character },
  { pattern: / {2,}\n|\\\n/, make: () => h("br") },
];

/** Nodes and texts for `source`. */
export function inline(source) {
  const nodes = [];
  for (let rest = source; rest; ) {
    const found = nearest(rest);
    if (!found) {
      nodes.push(rest);
      break;
    }
    if (found.match.index) nodes.push(rest.slice(0, found.match.index));
    nodes.push(found.rule.make(found.match));
    rest = rest.slice(found.match.index + found.match[0].length);
  }
  return nodes;
}

function nearest(text) {
  let best = null;
  for (const rule of RULES) {
    const match = rule.pattern.exec(text);
    if (match && (!best || match.index < best.match.index)) best = { rule, match };
  }
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
