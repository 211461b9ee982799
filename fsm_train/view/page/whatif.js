// What would have been: verdicts that were computed before, as marks on the curves and as a table.

import { colourOf, el, themed } from "./dom.js";
import { BOTTOM, TOP, clipped } from "./drawing.js";
import { RIGHT, leftOf } from "./scales.js";

const VERDICTS = { exact: "It would have ended here", censored: "It would still be running here", refused: "Nothing is known after this" };

/** A mark for each verdict in sight: named on the curve of the metric that it is about, and faint on the others. */
export function drawMarks(pen, view, lines, scale, width) {
  const [low, high] = view.range;
  const taken = [-Infinity, -Infinity]; // how far the labels of each of two lines reach
  for (const run of view.runs) {
    const monitored = run.whatIf.some((mark) => lines.some((line) => line.curve.kind === "metric" && line.curve.name === mark.best?.monitor));
    for (const mark of stacked(run, view.axis)) {
      if (mark.position < low || mark.position > high) continue;
      const x = Math.round(scale.x(mark.position)) + 0.5;
      const exact = mark.verdict === "exact";
      pen.strokeStyle = themed(exact ? colourOf(run.index) : "--faint");
      pen.globalAlpha = monitored ? 0.8 : 0.25;
      pen.setLineDash(exact ? [] : [2, 3]);
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(x, TOP);
      pen.lineTo(x, BOTTOM);
      pen.stroke();
      pen.setLineDash([]);
      pen.globalAlpha = 1;
      if (monitored) label(pen, mark, x, width, taken);
    }
  }
}

/** The settings of a mark beside its line; in a second line where the first one is taken, and nowhere if that is too. */
function label(pen, mark, x, width, taken) {
  const text = clipped(pen, `${inRanges(mark.labels)}${mark.verdict === "exact" ? "" : ` ${mark.verdict}`}`, 120);
  const room = pen.measureText(text).width + 8;
  const left = Math.max(leftOf(width), Math.min(width - RIGHT - room, x - room / 2));
  const line = taken.findIndex((end) => end < left);
  if (line < 0) return;
  taken[line] = left + room;
  pen.fillStyle = themed("--panel");
  pen.fillRect(left, line * 13, room, 13);
  pen.fillStyle = themed(mark.verdict === "exact" ? "--ink" : "--quiet");
  pen.textAlign = "left";
  pen.textBaseline = "middle";
  pen.fillText(text, left + 4, line * 13 + 7);
}

/** Labels in a row, whole numbers that follow each other as a range. */
export function inRanges(labels) {
  const found = [];
  for (const text of labels) {
    const last = found[found.length - 1];
    const number = /^\d{1,9}$/.test(text) ? Number(text) : NaN;
    if (last && number === last.end + 1) last.end = number;
    else found.push({ text, end: number });
  }
  return found.map(({ text, end }) => (Number.isNaN(end) || text === String(end) ? text : `${text}–${end}`)).join(", ");
}

/** The verdicts of a run by position: settings that end at the same line share a mark. */
function stacked(run, axis) {
  const marks = new Map();
  for (const mark of run.whatIf) {
    const key = `${mark.row}/${mark.verdict}`;
    if (!marks.has(key)) marks.set(key, { verdict: mark.verdict, position: run.axis(axis)[mark.row], labels: [] });
    marks.get(key).labels.push(mark.label);
  }
  return [...marks.values()];
}

/** The what-ifs of all runs as a table, whose rows put the cursor where the verdict falls. */
export function whatIfTable(view) {
  const rows = view.runs.flatMap((run) => run.whatIf.map((mark) => ({ run, mark })));
  if (!rows.length) return null;
  const go = (run, mark) => () => {
    view.choose(run.index);
    view.moveTo(mark.row);
  };
  return el(
    "table",
    { class: "wide" },
    el("thead", {}, el("tr", {}, ["setting", "verdict", "stopped at", "best", "why"].map((name) => el("th", { scope: "col" }, name)))),
    el(
      "tbody",
      {},
      rows.map(({ run, mark }) =>
        el(
          "tr",
          {},
          el(
            "td",
            {},
            el("button", { type: "button", class: "link setting", on: { click: go(run, mark) } }, mark.setting),
            view.runs.length > 1 ? el("div", { class: "quiet" }, run.name) : null,
          ),
          el("td", { title: VERDICTS[mark.verdict] }, el("span", { class: `verdict ${mark.verdict}` }, mark.verdict)),
          el("td", { class: "number" }, mark.stopped === null ? "–" : `epoch ${mark.stopped}`),
          el("td", { class: "number" }, mark.best ? `${mark.best.text} (epoch ${mark.best.epoch})` : "–"),
          el("td", {}, mark.why),
        ),
      ),
    ),
  );
}
