// Markdown as models write it: blocks in, elements out. What is not understood is shown as it was written.

import { h } from "./dom.js";
import { inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const MOST_DEPTH = 16;
const TABLE_LINE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** Show `source` in `target`. Blocks that have not changed since the last call keep their elements: while an answer
 * streams only its end is drawn anew, and what somebody has selected above stays selected. */
export function render(target, source) {
  const blocks = split(source);
  const known = (target.blocks ??= []);
  let same = 0;
  while (same < blocks.length && same < known.length && blocks[same] === known[same]) same += 1;
  while (target.childNodes.length > same) target.lastChild.remove();
  target.append(...blocks.slice(same).map((block) => element(block, 0)));
  target.blocks = blocks;
}

/** Sources of the top-level blocks. */
function split(source) {
  const blocks = [];
  let lines = [];
  let fence = null;
  const end = () => {
    if (lines.length) blocks.push(lines.join("\n"));
    lines = [];
  };
  for (const line of source.replaceAll("\r\n", "\n").split("\n")) {
    const mark = FENCE.exec(line);
    if (fence) {
      lines.push(line);
      if (mark && !mark[2] && mark[1].startsWith(fence)) {
        fence = null;
        end();
      }
    } else if (mark) {
      end();
      fence = mark[1];
      lines.push(line);
    } else if (!line.trim()) {
      if (lines.length && ITEM.test(lines[0])) lines.push(line); // a list goes on after a blank line
      else end();
    } else {
      if (lines.length && startsAnew(lines, line)) end();
      lines.push(line);
    }
  }
  while (lines.length && !lines.at(-1).trim()) lines.pop();
  end();
  return blocks;
}

function startsAnew(lines, line) {
  const isList = ITEM.test(lines[0]);
  if (HEADING.test(line) || HEADING.test(lines.at(-1)) || RULE.test(line)) return true;
  if (isList) return !lines.at(-1).trim() && !ITEM.test(line) && !/^\s/.test(line);
  return ITEM.test(line) || QUOTE.test(line) !== QUOTE.test(lines[0]);
}

/** `depth`: of quotes and lists around it; what is deeper than anybody writes is shown as it is. */
function element(source, depth) {
  const lines = source.split("\n");
  const heading = HEADING.exec(source);
  if (FENCE.test(lines[0])) return code(lines);
  if (heading && lines.length === 1) return h(`h${Math.min(6, heading[1].length + 2)}`, {}, ...inline(heading[2]));
  if (RULE.test(source)) return h("hr");
  if (depth < MOST_DEPTH && ITEM.test(lines[0])) return list(lines, depth + 1);
  if (depth < MOST_DEPTH && QUOTE.test(lines[0])) return quote(lines, depth + 1);
  if (lines.length > 1 && lines[0].includes("|") && TABLE_LINE.test(lines[1])) return table(lines);
  return h("p", {}, ...inline(source));
}

function code(lines) {
  const [, mark, language] = FENCE.exec(lines[0]);
  const closed = lines.length > 1 && lines.at(-1).trim().startsWith(mark);
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const copy = h("button", { type: "button", class: "small copy-code" }, "Copy");
  copy.addEventListener("click", () => copyText(text, copy));
  return h("figure", { class: "code-block" },
    h("figcaption", {}, h("span", {}, language || "text"), copy),
    h("pre", { tabindex: "0" }, h("code", {}, text)));
}

/** Put `text` on the clipboard; the button says how that went. */
export async function copyText(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed"; // pages that came over plain HTTP from another host
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}

function quote(lines, depth) {
  const inner = lines.map((line) => line.replace(QUOTE, "")).join("\n");
  return h("blockquote", {}, ...split(inner).map((block) => element(block, depth)));
}

function list(lines, depth) {
  const [, indent, marker] = ITEM.exec(lines[0]);
  const isOrdered = /\d/.test(marker);
  const items = [];
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match && match[1].length <= indent.length + 1) items.push([match[3]]);
    else items.at(-1).push(line);
  }
  const start = isOrdered && parseInt(marker, 10) !== 1 ? parseInt(marker, 10) : null;
  return h(isOrdered ? "ol" : "ul", { start }, ...items.map((lines) => item(lines, depth)));
}

function item([first, ...rest], depth) {
  const inner = rest.join("\n").trim() ? split(dedent(rest).join("\n")) : [];
  const isText = inner.length && !ITEM.test(inner[0]) && !FENCE.test(inner[0]) && rest[0].trim();
  const lead = isText ? `${first}\n${inner.shift()}` : first;
  return h("li", {}, ...inline(lead), ...inner.map((block) => element(block, depth)));
}

function dedent(lines) {
  const widths = lines.filter((line) => line.trim()).map((line) => /^\s*/.exec(line)[0].length);
  const width = Math.min(...widths);
  return lines.map((line) => line.slice(width));
}

function table(lines) {
  const [head, , ...rows] = lines.map(cells);
  return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, h("table", {},
    h("thead", {}, h("tr", {}, ...head.map((cell) => h("th", { scope: "col" }, ...inline(cell))))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...head.map((_, n) => h("td", {}, ...inline(row[n] ?? ""))))))));
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}
