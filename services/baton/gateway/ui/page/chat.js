// The chat view: what is typed goes to the model, what it answers is shown as it comes.

import { newAnswer, fill } from "./answer.js";
import { models } from "./api.js";
import { Conversation } from "./conversation.js";
import { announce, byId, h, setText } from "./dom.js";
import { AnswerView, userMessage } from "./message.js";
import { OptionError } from "./options.js";

const EXAMPLES = [
  "The code of the red box is 4821. What is the code of the red box?",
  "Extract the name and age from: John Smith is 32 years old.",
  "Count from 95 to 105.",
];
const NEAR_END_PX = 80; // who has scrolled further up than this reads, and is not to be moved

export class Chat {
  constructor(options, openOptions) {
    this.options = options;
    this.openOptions = openOptions;
    this.conversation = new Conversation();
    this.views = new WeakMap(); // assistant message -> AnswerView
    this.running = null; // AbortController of the answer that is coming
    this.failure = null; // what went wrong last, while it is shown
    this.#listen();
    byId("examples").append(...EXAMPLES.map((text) => h("li", {},
      h("button", { type: "button", on: { click: () => this.#say(text) } }, text))));
    this.#draw();
    this.#toEnd();
    this.modelsCame = this.loadModels();
  }

  /** Ask again which models there are: at the start, with another key, when none was there. */
  async loadModels() {
    clearTimeout(this.later);
    try {
      this.options.offer(await models());
      setText(byId("empty-model"), this.options.model || "the model");
      if (this.failure?.status === 401) this.#fail(null);
    } catch (error) {
      this.options.note(error.status === 401 ? "This server wants an API key." : error.message);
      if (error.status === 401) this.#fail(error);
      else this.later = setTimeout(() => this.loadModels(), 3000);
    }
  }

  #listen() {
    const prompt = byId("prompt");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (prompt.value.trim() && !this.running) this.#say(prompt.value.trim());
    });
    prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        byId("composer").requestSubmit();
      }
    });
    prompt.addEventListener("input", () => this.#drawComposer());
    byId("stop").addEventListener("click", () => this.#stop());
    byId("clear").addEventListener("click", () => this.#clear());
    byId("chat").addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.running && !event.target.closest(".options")) this.#stop();
    });
  }

  #say(text) {
    this.#ask(() => {
      byId("prompt").value = "";
      this.conversation.add({ role: "user", content: text });
    });
  }

  #again() {
    if (!this.running) this.#ask(() => this.conversation.forgetAnswer());
  }

  #giveResults(message, results) {
    this.#ask(() => { message.results = results; });
  }

  /** Have the conversation answered once `change` is made to it, unless the settings cannot be sent. */
  #ask(change) {
    this.#fail(null);
    let fields;
    try {
      fields = this.options.request();
    } catch (error) {
      if (!(error instanceof OptionError)) throw error;
      this.#fail(error);
      this.openOptions(error.field);
      return;
    }
    change();
    byId("prompt").focus(); // a button that was pressed may go away
    this.#answer({ ...fields, messages: this.conversation.forApi(this.options.system) });
  }

  #stop() {
    this.running?.abort();
    byId("prompt").focus();
  }

  #clear() {
    this.running?.abort();
    this.conversation.clear();
    this.#fail(null);
    this.#draw();
    byId("prompt").focus();
  }

  async #answer(body) {
    const message = this.conversation.add(newAnswer());
    const run = (this.running = new AbortController());
    this.#draw();
    this.#toEnd();
    announce("The model is answering.");
    try {
      if (!body.model) {
        await this.modelsCame;
        body.model = this.options.model;
      }
      await fill(message, body, run.signal, () => this.#drawSoon());
      announce(`The answer is complete: ${message.stats.tokens} tokens.`);
    } catch (error) {
      this.#ended(message, error);
    } finally {
      if (this.running === run) this.running = null;
      this.conversation.keep();
      this.#draw();
    }
  }

  #ended(message, error) {
    if (error.name === "AbortError") {
      message.stopped = true;
      announce("Stopped.");
      return;
    }
    message.error = error.message;
    this.#fail(error);
    if (!message.content && !message.reasoning && !message.calls.length) this.conversation.messages.splice(this.conversation.messages.indexOf(message), 1);
  }

  /** What went wrong, and what helps. */
  #fail(error) {
    const box = byId("failure");
    this.failure = error;
    box.hidden = !error;
    if (!error) return;
    const wait = error.retryAfter ? ` It may work again in ${error.retryAfter} s.` : "";
    const help = error.status === 401
      ? h("button", { type: "button", class: "small", on: { click: () => this.openOptions("key") } }, "Enter an API key")
      : error instanceof OptionError || !this.conversation.messages.length ? null
        : h("button", { type: "button", class: "small", on: { click: () => this.#again() } }, "Try again");
    box.replaceChildren(...[h("p", {}, `${error.message}${wait}`), help].filter(Boolean));
  }

  // --- drawing ------------------------------------------------------------------------------------------------

  #drawSoon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.#draw();
    });
  }

  #draw() {
    const { messages } = this.conversation;
    const follow = this.#isAtEnd();
    byId("empty").hidden = messages.length > 0;
    byId("clear").hidden = messages.length === 0;
    const list = byId("messages");
    messages.forEach((message, n) => {
      const element = this.#elementOf(message, n === messages.length - 1);
      if (list.children[n] !== element) list.insertBefore(element, list.children[n] ?? null);
    });
    while (list.children.length > messages.length) list.lastElementChild.remove();
    this.#drawComposer();
    if (follow) this.#toEnd();
  }

  #elementOf(message, isLast) {
    if (message.role === "user") return (message.element ??= hidden(message, userMessage(message)));
    let view = this.views.get(message);
    if (!view) {
      view = new AnswerView(message, { again: () => this.#again(), results: (map) => this.#giveResults(message, map) });
      this.views.set(message, view);
    }
    const state = `${Boolean(this.running) && isLast},${isLast},${Boolean(message.results)}`;
    if (isLast || view.state !== state) view.update({ running: Boolean(this.running) && isLast, isLast });
    view.state = state;
    return view.element;
  }

  #drawComposer() {
    const prompt = byId("prompt");
    const isRunning = Boolean(this.running);
    byId("send").hidden = isRunning;
    byId("stop").hidden = !isRunning;
    byId("send").disabled = !prompt.value.trim();
    prompt.style.height = "auto";
    prompt.style.height = `${prompt.scrollHeight}px`;
  }

  #isAtEnd() {
    const box = byId("scroll");
    return box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END_PX;
  }

  #toEnd() {
    const box = byId("scroll");
    box.scrollTop = box.scrollHeight;
  }
}

/** Keep an element with a message without its being stored with it. */
function hidden(message, element) {
  Object.defineProperty(message, "element", { value: element, enumerable: false, writable: true });
  return element;
}
