// Builds elements. Text is always text: nothing on this page parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id, which index.html has. */
export const byId = (id) => document.getElementById(id);

/** An element. Properties: `class`, `on` (event -> listener), `data` (dataset), anything else is an attribute, left out
 * when it is null or false. Children: nodes and texts, null ones are passed over. */
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for SVG. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Set text only when it changes, so that selections and screen readers are left in peace. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

let announced = 0;

/** Tell people who listen. */
export function announce(text) {
  const region = byId("announce");
  region.textContent = "";
  clearTimeout(announced);
  announced = setTimeout(() => { region.textContent = text; }, 50); // the same text twice is two announcements
}
