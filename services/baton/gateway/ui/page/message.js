// One message of the conversation on the page.

import { h, setText } from "./dom.js";
import { bytes, count, counted, percent, seconds, short } from "./format.js";
import { copyText, render } from "./markdown.js";

/** The element of a user's message. */
export function userMessage(message) {
  return h("article", { class: "message user", "aria-label": "You" }, h("p", {}, message.content));
}

/** An answer of the model, which may still be coming. `act` has what its buttons do: again(), results(map). */
export class AnswerView {
  constructor(message, act) {
    this.message = message;
    this.act = act;
    this.reasoning = h("div", { class: "markdown" });
    this.thinking = h("details", { class: "thinking", hidden: true }, h("summary", {}, "Reasoning"), this.reasoning);
    this.text = h("div", { class: "markdown text" });
    this.calls = h("div", { class: "calls" });
    this.foot = h("footer", { class: "foot" });
    this.element = h("article", { class: "message model", "aria-label": "Model" },
      this.thinking, this.text, this.calls, this.foot);
    this.cards = [];
  }

  /** Show what there is. `running`: more is coming. `isLast`: nothing follows it in the conversation. */
  update({ running, isLast }) {
    const { message } = this;
    this.element.setAttribute("aria-busy", running);
    this.element.classList.toggle("is-running", running);
    this.thinking.hidden = !message.reasoning;
    if (running && message.reasoning && !message.content) this.thinking.open = true;
    else if (this.wasRunning && message.content && !this.hasFolded) this.thinking.open = !(this.hasFolded = true);
    this.wasRunning = running;
    setText(this.thinking.firstChild, running && !message.content ? "Reasoning…" : "Reasoning");
    render(this.reasoning, message.reasoning);
    render(this.text, message.content);
    this.#updateCalls(running, isLast);
    this.foot.replaceChildren(...(running ? [] : this.#footing(isLast)));
  }

  #updateCalls(running, isLast) {
    const { calls, results } = this.message;
    calls.forEach((call, n) => {
      if (!this.cards[n]) this.calls.append((this.cards[n] = new CallCard(call)).element);
      this.cards[n].update({ running, asks: !running && isLast && !results, result: results?.[call.id] });
    });
    const asks = !running && isLast && !results && calls.length > 0;
    if (asks && !this.sender) {
      this.sender = h("button", { type: "button", class: "primary", on: { click: () => this.#sendResults() } },
        calls.length > 1 ? "Send results" : "Send result");
      this.calls.append(this.sender);
    } else if (!asks && this.sender) {
      this.sender.remove();
      this.sender = null;
    }
  }

  #sendResults() {
    this.act.results(Object.fromEntries(this.cards.map((card) => [card.call.id, card.typed])));
  }

  #footing(isLast) {
    const { stats, stopped, error, finish } = this.message;
    const why = error ?? (stopped ? "Stopped." : finish === "length" ? "Cut off: the most tokens were reached." : "");
    return [
      why ? h("p", { class: "why" }, why) : null,
      stats ? statsList(stats) : null,
      stats?.served?.prefill_worker ? route(stats.served) : null,
      h("p", { class: "actions" },
        this.message.content ? copyButton(this.message) : null,
        isLast ? h("button", { type: "button", class: "small", on: { click: () => this.act.again() } }, error ? "Try again" : "Regenerate") : null),
    ].filter(Boolean);
  }
}

/** A tool call, and a box for its result. */
class CallCard {
  constructor(call) {
    this.call = call;
    this.name = h("code", { class: "call-name" });
    this.arguments = h("pre", { tabindex: "0", "aria-label": "Arguments" });
    this.input = h("textarea", { rows: "2", placeholder: "What the tool answers" });
    this.ask = h("label", { class: "call-result", hidden: true }, "Result", this.input);
    this.given = h("pre", { class: "given", hidden: true, tabindex: "0", "aria-label": "Result" });
    this.element = h("section", { class: "call", "aria-label": "Tool call" },
      h("p", { class: "call-head" }, "calls ", this.name), this.arguments, this.ask, this.given);
  }

  get typed() {
    return this.input.value;
  }

  update({ running, asks, result }) {
    setText(this.name, this.call.name);
    setText(this.arguments, running ? this.call.arguments : pretty(this.call.arguments));
    this.ask.hidden = !asks;
    this.given.hidden = result === undefined;
    setText(this.given, result ?? "");
  }
}

function copyButton(message) {
  const button = h("button", { type: "button", class: "small" }, "Copy");
  button.addEventListener("click", () => copyText(message.content, button));
  return button;
}

function statsList({ firstTokenS, tokensPerS, tokens, promptTokens, cachedTokens }) {
  return h("dl", { class: "stats" },
    figure("first token", firstTokenS === null ? null : seconds(firstTokenS)),
    figure("speed", tokensPerS === null ? null : `${short(tokensPerS)} tok/s`),
    figure("length", counted(tokens, "token")),
    figure("prompt", promptTokens === null ? null : `${counted(promptTokens, "token")}, ${count(cachedTokens ?? 0)} cached`));
}

function figure(name, value) {
  return value === null ? null : h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

/** Who read the prompt, who wrote the answer, and what passed between them. */
function route({ prefill_worker: from, decode_worker: to, handoff, attempts }) {
  const again = attempts > 1 ? `, at the ${attempts === 2 ? "second" : `${attempts}th`} attempt` : "";
  if (!to || from === to) {
    return h("p", { class: "route" }, h("span", { class: "dot whole" }), h("span", { class: "worker" }, from), ` did it all${again}`);
  }
  const passed = handoff ? [
    bytes(handoff.bytes), seconds(handoff.seconds), handoff.overlap === null ? null : `${percent(handoff.overlap)} hidden`,
  ].filter(Boolean).join(", ") : "";
  return h("p", { class: "route" },
    h("span", { class: "dot from" }), h("span", { class: "unseen" }, "Prompt read by "), h("span", { class: "worker" }, from),
    h("span", { class: "baton", "aria-hidden": "true" }),
    h("span", { class: "dot to" }), h("span", { class: "unseen" }, ", answer written by "), h("span", { class: "worker" }, to),
    passed || again ? h("span", { class: "passed" }, `${passed}${again}`) : null);
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // cut off, or wrong: as the model wrote it
  }
}
