// How curves are drawn: what of many points is in a pixel, lines, what is no number, and the grid.

import { colourOf, themed } from "./dom.js";
import { showNumber } from "./format.js";
import { RIGHT, digitsOf, leftOf } from "./scales.js";

export const HEIGHT = 148;
export const TOP = 14;
export const BOTTOM = HEIGHT - 14; // below it stands what is no number

/** The points from `first` to `last` by pixel: where more than one shares it, their first, lowest, highest and last. */
export function columnsOf(points, first, last, x, width, line) {
  const found = { line, end: x(line.curve.run.length - 1), path: [], points: [], odd: [], low: Infinity, high: -Infinity, least: Infinity };
  const few = last - first < width / 6;
  let column = null;
  const close = () => {
    if (column) found.path.push(column);
    column = null;
  };
  for (let index = first; index < last; index++) {
    const value = points.values[index];
    const at = x(points.rows[index]);
    if (!Number.isFinite(value)) {
      close();
      found.path.push(null);
      if (!found.odd.length || at - found.odd[found.odd.length - 1].at >= 1) found.odd.push({ at, value });
      continue;
    }
    if (value < found.low) found.low = value;
    if (value > found.high) found.high = value;
    if (value > 0 && value < found.least) found.least = value;
    if (few) found.points.push([at, value]);
    if (column && at - column.at < 1) {
      if (value < column.low) column.low = value;
      if (value > column.high) column.high = value;
      column.last = value;
    } else {
      close();
      column = { at, first: value, low: value, high: value, last: value };
    }
  }
  close();
  return found;
}

export function drawColumns(pen, columns, height, logarithmic) {
  const { line } = columns;
  const y = (value) => (logarithmic && value <= 0 ? BOTTOM : height.y(value));
  pen.strokeStyle = pen.fillStyle = themed(colourOf(line.curve.run.index));
  // The first run is drawn widest: where a later one is equal, both can be seen.
  pen.lineWidth = line.curve.run.index === 0 && line.beside ? 3 : 1.5;
  pen.lineJoin = "round";
  pen.setLineDash(line.dashed ? [4, 3] : []);
  pen.beginPath();
  let before = null;
  for (const column of columns.path) {
    if (column) {
      if (!before) pen.moveTo(column.at, y(column.first));
      else {
        if (line.held) pen.lineTo(column.at, y(before.last));
        pen.lineTo(column.at, y(column.first));
      }
      if (column.low !== column.high) {
        pen.lineTo(column.at, y(column.low));
        pen.lineTo(column.at, y(column.high));
        pen.lineTo(column.at, y(column.last));
      }
    }
    before = column;
  }
  if (line.held && before) pen.lineTo(columns.end, y(before.last)); // it holds to the last line of the run
  pen.stroke();
  pen.setLineDash([]);
  for (const [at, value] of line.held ? [] : columns.points) {
    pen.beginPath();
    pen.arc(at, y(value), 2.2, 0, 7);
    pen.fill();
  }
}

/** Where a value is no finite number: a cross below the curve for NaN, a triangle that points to where infinity is. */
export function drawNoNumbers(pen, columns) {
  if (!columns.odd.length) return;
  pen.strokeStyle = pen.fillStyle = themed("--alarm");
  pen.lineWidth = 1.5;
  let named = -Infinity;
  for (const { at, value } of columns.odd) {
    const middle = BOTTOM + 5;
    pen.beginPath();
    if (Number.isNaN(value)) {
      pen.moveTo(at - 3, middle - 3);
      pen.lineTo(at + 3, middle + 3);
      pen.moveTo(at - 3, middle + 3);
      pen.lineTo(at + 3, middle - 3);
      pen.stroke();
    } else {
      const up = value > 0 ? -1 : 1;
      pen.moveTo(at - 4, middle - 3 * up);
      pen.lineTo(at + 4, middle - 3 * up);
      pen.lineTo(at, middle + 4 * up);
      pen.fill();
    }
    if (at - named > 120) {
      pen.textAlign = "left";
      pen.textBaseline = "middle";
      pen.fillText(Number.isNaN(value) ? "NaN" : value > 0 ? "∞" : "−∞", at + 6, middle);
      named = at;
    }
  }
}

export function drawGrid(pen, width, height, finite) {
  const left = leftOf(width);
  pen.strokeStyle = themed("--line");
  pen.lineWidth = 1;
  pen.beginPath();
  for (const tick of finite ? height.ticks : []) {
    const y = Math.round(height.y(tick)) + 0.5;
    pen.moveTo(left, y);
    pen.lineTo(width - RIGHT, y);
  }
  pen.stroke();
  pen.fillStyle = themed("--quiet");
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  const digits = digitsOf(height.ticks);
  for (const tick of finite ? height.ticks : []) {
    pen.fillText(clipped(pen, showNumber(Number(tick.toPrecision(digits)), digits), left - 10), left - 8, height.y(tick));
  }
  if (!finite) {
    pen.textAlign = "center";
    pen.fillText("nothing here is a number", (left + width - RIGHT) / 2, HEIGHT / 2);
  }
}

/** The text, cut to a width in pixels. */
export function clipped(pen, text, most) {
  if (pen.measureText(text).width <= most) return text;
  let length = text.length;
  while (length > 1 && pen.measureText(`${text.slice(0, length)}…`).width > most) length = Math.floor(length * 0.8);
  return `${text.slice(0, length)}…`;
}
