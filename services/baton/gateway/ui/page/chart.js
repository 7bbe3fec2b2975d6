// A small chart of the last minutes: one line over its area, and the value now. Own code, inline SVG.

import { h, setText, svg } from "./dom.js";

const WIDTH = 240;
const HEIGHT = 56;
const TOP = 4; // room for the line's width

/** `colour`: a class of cluster.css. `format` makes text of a value. `most`: the scale's end, when it is fixed. */
export class Chart {
  constructor({ title, colour, format, most = null, note = "" }) {
    this.format = format;
    this.most = most;
    this.value = h("span", { class: "chart-value" }, "–");
    this.note = h("span", { class: "chart-note" }, note);
    this.peak = h("span", { class: "chart-peak" });
    this.area = svg("path", { class: "area" });
    this.line = svg("path", { class: "line" });
    this.cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT, hidden: true });
    this.drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
      svg("line", { class: "most", x1: 0, x2: WIDTH, y1: TOP, y2: TOP }),
      svg("line", { class: "ground", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }), this.area, this.line, this.cursor);
    this.title = title;
    this.values = [];
    this.element = h("figure", { class: `chart ${colour}` },
      h("figcaption", {}, h("span", { class: "chart-title" }, title), this.value, this.note),
      h("div", { class: "plot" }, this.drawing, this.peak));
    this.drawing.addEventListener("pointermove", (event) => this.#inspect(event));
    this.drawing.addEventListener("pointerleave", () => this.#inspect(null));
  }

  /** Draw `values`, oldest first, null where nothing is known; `length` of them fill the width. `note`: beside the value. */
  draw(values, length, note = "") {
    this.values = values;
    this.length = length;
    const known = values.filter((value) => value !== null);
    const most = this.most ?? roundUp(Math.max(...known, 0));
    const step = WIDTH / (length - 1);
    const at = (value, n) => [
      (n + length - values.length) * step,
      HEIGHT - (HEIGHT - TOP) * (most ? Math.min(1, value / most) : 0),
    ];
    const runs = split(values, at);
    this.line.setAttribute("d", runs.map(path).join(""));
    this.area.setAttribute("d", runs.map((run) => `${path(run)}L${run.at(-1)[0]} ${HEIGHT}L${run[0][0]} ${HEIGHT}Z`).join(""));
    setText(this.peak, most && known.length ? this.format(most) : "");
    setText(this.note, note);
    if (!this.inspected) this.#show(known.length ? values.findLast((value) => value !== null) : null);
    this.drawing.setAttribute("aria-label", this.#spoken(known));
  }

  #show(value) {
    setText(this.value, value === null || value === undefined ? "–" : this.format(value));
  }

  #inspect(event) {
    this.inspected = Boolean(event);
    this.cursor.toggleAttribute("hidden", !event);
    this.element.classList.toggle("is-inspected", this.inspected);
    if (!event) {
      this.#show(this.values.findLast((value) => value !== null));
      return;
    }
    const box = this.drawing.getBoundingClientRect();
    const place = Math.round(((event.clientX - box.left) / box.width) * (this.length - 1));
    this.cursor.setAttribute("x1", (place * WIDTH) / (this.length - 1));
    this.cursor.setAttribute("x2", (place * WIDTH) / (this.length - 1));
    this.#show(this.values[place - this.length + this.values.length]);
  }

  #spoken(known) {
    if (!known.length) return `${this.title}: nothing measured yet`;
    const words = [known.at(-1), Math.max(...known)].map(this.format);
    return `${this.title}: ${words[0]} now, at most ${words[1]} in the last two minutes`;
  }
}

/** Runs of neighbouring known values, as points. A single one becomes a short line. */
function split(values, at) {
  const runs = [];
  let run = null;
  values.forEach((value, n) => {
    if (value === null) {
      run = null;
      return;
    }
    if (!run) runs.push((run = []));
    run.push(at(value, n));
  });
  return runs.map((points) => (points.length > 1 ? points : [[points[0][0] - 1, points[0][1]], points[0]]));
}

const path = (points) => points.map(([x, y], n) => `${n ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/** The next 1, 2 or 5 times a power of ten: the scale changes seldom. */
function roundUp(value) {
  if (value <= 0) return 0;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((end) => end >= value);
}
