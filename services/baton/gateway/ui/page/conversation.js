// The conversation: what was said, as this browser keeps it, and as the API takes it.
//
// A message: {role: "user", content} | {role: "assistant", content, reasoning, calls: [{id, name, arguments}], results:
// {call id: text}, stats, error, stopped}. Results of tools belong to the message that called them.

import { load, save } from "./storage.js";

const KEPT = "conversation";

export class Conversation {
  constructor() {
    const kept = load(KEPT, []);
    this.messages = Array.isArray(kept) ? kept.filter(isMessage) : [];
    const last = this.messages.at(-1);
    if (last?.role === "assistant" && !last.stats && !last.error) last.stopped = true; // the page was left meanwhile
  }

  add(message) {
    this.messages.push(message);
    this.keep();
    return message;
  }

  /** Forget the last answer, so that it can be made anew. One whose tools have results is no answer but a question. */
  forgetAnswer() {
    const last = this.messages.at(-1);
    if (last?.role === "assistant" && !last.results) this.messages.pop();
    this.keep();
  }

  clear() {
    this.messages = [];
    this.keep();
  }

  keep() {
    save(KEPT, this.messages.length ? this.messages : null);
  }

  /** As `messages` of a chat completion. */
  forApi(system) {
    const messages = system ? [{ role: "system", content: system }] : [];
    for (const message of this.messages) {
      if (message.role === "user") messages.push({ role: "user", content: message.content });
      else messages.push(...assistantMessages(message));
    }
    return messages;
  }
}

function assistantMessages(message) {
  const calls = (message.calls ?? []).filter((call) => message.results?.[call.id] !== undefined);
  if (!message.content && !calls.length) return []; // it failed before it said anything
  const said = { role: "assistant", content: message.content || null };
  if (calls.length) {
    said.tool_calls = calls.map(({ id, name, arguments: text }) => ({
      id, type: "function", function: { name, arguments: text },
    }));
  }
  return [said, ...calls.map(({ id }) => ({ role: "tool", tool_call_id: id, content: message.results[id] }))];
}

function isMessage(message) {
  return (message?.role === "user" || message?.role === "assistant") && typeof message.content === "string";
}
