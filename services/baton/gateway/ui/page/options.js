// The settings beside the conversation: kept in this browser, and turned into fields of a request.

import { byId, h } from "./dom.js";
import { isKeyRemembered, load, loadKey, save, saveKey } from "./storage.js";

const KEPT = "options";
const NUMBERS = [
  "temperature", "max_tokens", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty",
  "frequency_penalty",
];
const TITLES = { schema: "JSON schema", tools: "Tools" };
const EXAMPLES = {
  schema: {
    type: "object",
    properties: { name: { type: "string" }, age: { type: "integer" } },
    required: ["name", "age"],
    additionalProperties: false,
  },
  tools: [{
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather in a city now",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  }],
};

/** A field that cannot be sent as it is. */
export class OptionError extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

export class Options {
  constructor() {
    this.form = byId("options-form");
    this.fields = this.form.elements;
    this.model = load(KEPT, {}).model ?? ""; // chosen, though the list may not have come yet
    this.#fill(load(KEPT, {}));
    this.form.addEventListener("input", (event) => this.#changed(event.target));
    this.form.addEventListener("submit", (event) => event.preventDefault());
    for (const button of this.form.querySelectorAll("[data-example]")) {
      button.addEventListener("click", () => this.#putExample(button.dataset.example));
    }
    byId("reset-options").addEventListener("click", () => this.#reset());
  }

  /** Offer these models; the one chosen before stays chosen while it exists. */
  offer(names) {
    const chosen = names.includes(this.model) ? this.model : names[0] ?? "";
    this.fields.model.replaceChildren(...names.map((name) => h("option", { value: name, selected: name === chosen }, name)));
    this.model = chosen;
    this.note(names.length ? "" : "No model is served yet.");
  }

  /** Say something below the choice of models. */
  note(text) {
    const note = byId("model-note");
    note.textContent = text;
    note.hidden = !text;
  }

  get system() {
    return this.fields.system.value.trim();
  }

  /** Fields of a chat completion, messages aside. Throws OptionError. */
  request() {
    const body = { model: this.model, stream: true, stream_options: { include_usage: true } };
    for (const name of NUMBERS) {
      const field = this.fields[name];
      if (!field.checkValidity()) throw new OptionError(name, `${field.labels[0].textContent.trim()}: ${field.validationMessage}`);
      if (field.value !== "") body[name] = Number(field.value);
    }
    const stops = this.fields.stop.value.split("\n").filter((line) => line);
    if (stops.length) body.stop = stops;
    if (this.fields.reasoning_effort.value) body.reasoning_effort = this.fields.reasoning_effort.value;
    const schema = this.#json("schema", (value) => value && typeof value === "object" && !Array.isArray(value), "a JSON object");
    if (schema) body.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
    const tools = this.#json("tools", Array.isArray, "a JSON list of tools");
    if (tools?.length) Object.assign(body, { tools, tool_choice: this.fields.tool_choice.value });
    return body;
  }

  /** Bring a field into view, in whatever group it is. */
  focus(name) {
    const field = this.fields[name];
    const group = field.closest("details");
    if (group) group.open = true;
    field.focus();
  }

  #json(name, fits, wanted) {
    const text = this.fields[name].value.trim();
    const error = text ? problem(text, fits, wanted) : "";
    this.#complain(name, error);
    if (error) throw new OptionError(name, `${TITLES[name]}: ${error}`);
    return text ? JSON.parse(text) : null;
  }

  #complain(name, error) {
    const line = byId(`${name}-error`);
    line.textContent = error;
    line.hidden = !error;
    this.fields[name].setAttribute("aria-invalid", Boolean(error));
  }

  #changed(field) {
    if (field.name === "key" || field.name === "remember") {
      saveKey(this.fields.key.value.trim(), this.fields.remember.checked);
      this.form.dispatchEvent(new Event("keychange"));
      return;
    }
    if (field.name === "model") this.model = field.value;
    if (field.name === "schema" || field.name === "tools") this.#complain(field.name, "");
    this.#keep();
  }

  #keep() {
    const kept = {};
    for (const field of this.fields) {
      if (field.name && field.name !== "key" && field.name !== "remember" && field.value) kept[field.name] = field.value;
    }
    save(KEPT, { ...kept, model: this.model });
    this.#mark();
  }

  #fill(kept) {
    for (const field of this.fields) {
      if (field.name in kept && field.name !== "model") field.value = kept[field.name];
    }
    this.fields.key.value = loadKey();
    this.fields.remember.checked = isKeyRemembered();
    this.#mark();
    for (const name of ["schema", "tools"]) byId(`${name}-group`).open = Boolean(this.fields[name].value.trim());
  }

  /** Groups that are closed still show that something in them is set. */
  #mark() {
    for (const group of this.form.querySelectorAll("details")) {
      const fields = [...group.querySelectorAll("input, textarea")].filter((field) => field.type !== "checkbox");
      group.classList.toggle("is-set", fields.some((field) => field.value.trim()));
    }
  }

  #putExample(name) {
    this.fields[name].value = JSON.stringify(EXAMPLES[name], null, 2);
    this.#complain(name, "");
    this.#keep();
    this.fields[name].focus();
  }

  #reset() {
    const { key, remember } = this.fields;
    const access = [key.value, remember.checked];
    this.form.reset();
    [key.value, remember.checked] = access;
    this.fields.model.value = this.model;
    for (const name of ["schema", "tools"]) this.#complain(name, "");
    this.#keep();
  }
}

function problem(text, fits, wanted) {
  try {
    return fits(JSON.parse(text)) ? "" : `This must be ${wanted}.`;
  } catch (error) {
    return `This is not JSON: ${error.message}`;
  }
}
