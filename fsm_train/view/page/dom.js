// Elements. Text is always a text node: no string becomes markup anywhere in this page.

/** An element with attributes and children; a child that is no node is text, and one that is false or null is left out. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else if (name === "style") for (const [key, part] of Object.entries(value)) element.style.setProperty(key, part);
    else element.setAttribute(name, value === true ? "" : value);
  }
  fill(element, ...children);
  return element;
}

/** Replace what is in an element. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
}

export const byId = (id) => document.getElementById(id);

/** A colour, or anything else, that the style defines for the theme of now. */
export const themed = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const COLOURS = 8;

/** The name of the colour of a run. */
export const colourOf = (index) => `--series-${(index % COLOURS) + 1}`;

/** A canvas of the size at which it stands on the page, sharp on any screen; null where it has none yet. */
export function sharp(canvas, height) {
  const width = Math.floor(canvas.parentElement.clientWidth);
  if (width < 20) return null;
  const ratio = Math.min(window.devicePixelRatio || 1, 3);
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = `11px ${themed("--sans")}`;
  return { pen, width, height };
}
