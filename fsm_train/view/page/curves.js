// The curves: a panel for each name, with what was measured in training and in validation in one. However many points
// there are, what is drawn of each pixel is its first, lowest, highest and last value.

import { countUpTo } from "./columns.js";
import { colourOf, el, fill, sharp } from "./dom.js";
import { BOTTOM, HEIGHT, TOP, columnsOf, drawColumns, drawGrid, drawNoNumbers } from "./drawing.js";
import { showNumber } from "./format.js";
import { drag, moveCursorsTo, zoomByWheel } from "./pointer.js";
import { pointsOf } from "./run.js";
import { RIGHT, across, heights, leftOf } from "./scales.js";
import { drawMarks } from "./whatif.js";

const FIRST_PANELS = { metric: 3, hyper: 1, fact: 1 };
const DULL = ["batch_size", "elapsed"]; // facts that seldom tell much

export class Curves {
  constructor(view, root, picker) {
    Object.assign(this, { view, root, picker });
    this.panels = panelsOf(view.runs);
    this.build();
    view.on("picture", () => this.draw());
    view.on("cursor", () => this.moveCursors());
  }

  /** Make the elements of the panels that are shown, and the buttons that show and hide them. */
  build() {
    const buttons = this.panels.map((panel) =>
      el(
        "button",
        { type: "button", class: "chip", "aria-pressed": String(panel.shown), on: { click: () => this.toggle(panel) } },
        panel.title,
        kindLabel(panel),
      ),
    );
    fill(this.picker, buttons);
    fill(
      this.root,
      this.panels.filter((panel) => panel.shown).map((panel) => this.element(panel)),
      this.panels.some((panel) => panel.shown) ? null : el("p", { class: "empty" }, "No curve is chosen."),
    );
  }

  toggle(panel) {
    panel.shown = !panel.shown;
    const index = this.panels.indexOf(panel);
    this.build();
    this.picker.children[index].focus();
    this.view.tell("picture");
  }

  element(panel) {
    panel.canvas = el("canvas", { "aria-hidden": "true" });
    panel.cursors = this.view.runs.map((run) => el("div", { class: "cursor", "data-run": run.index }));
    panel.legend = panel.lines.map((line) => {
      line.output = el("output", { class: "number" });
      return el(
        "span",
        { class: "legend", style: { "--series": `var(${colourOf(line.curve.run.index)})` } },
        el("i", { class: line.dashed ? "dashed" : "solid" }),
        line.label,
        line.output,
      );
    });
    const plot = el("div", { class: "plot", role: "img", "aria-label": `Curve of ${panel.title}` }, panel.canvas, panel.cursors);
    drag(plot, (x, width) => this.view.moveToPosition(across(this.view.range, width).position(x)));
    zoomByWheel(plot, this.view);
    return el(
      "section",
      { class: "panel", "aria-label": panel.title },
      el("header", {}, el("h3", {}, panel.title, kindLabel(panel)), el("div", { class: "legends" }, panel.legend)),
      plot,
    );
  }

  draw() {
    for (const panel of this.panels) if (panel.shown) this.drawPanel(panel);
  }

  drawPanel(panel) {
    const surface = sharp(panel.canvas, HEIGHT);
    if (!surface) return;
    const { pen, width } = surface;
    const scale = across(this.view.range, width);
    const seen = panel.lines.flatMap((line) => this.inSight(line, scale, width));
    const logarithmic = this.view.logarithmic && seen.some((columns) => columns.least < Infinity);
    const low = Math.min(...seen.map((columns) => (logarithmic ? columns.least : columns.low)));
    const high = Math.max(...seen.map((columns) => columns.high));
    const finite = low <= high;
    const height = heights(finite ? low : 0, finite ? high : 1, TOP, BOTTOM - 6, logarithmic);
    drawGrid(pen, width, height, finite);
    drawMarks(pen, this.view, panel.lines, scale, width);
    pen.save();
    pen.beginPath();
    pen.rect(leftOf(width) - 3, 0, width - leftOf(width) - RIGHT + 6, HEIGHT);
    pen.clip();
    for (const columns of seen) drawColumns(pen, columns, height, logarithmic);
    for (const columns of seen) drawNoNumbers(pen, columns);
    pen.restore();
    panel.height = height;
  }

  /** What of a line is in sight: per pixel, or point by point where there are few. */
  inSight(line, scale, width) {
    const axis = line.curve.run.axis(this.view.axis);
    const [low, high] = this.view.range;
    return pointsOf(line.curve).map((points) => {
      const first = Math.max(0, countUpTo(points.rows, countUpTo(axis, low - 1e-12) - 1) - 1);
      const last = Math.min(points.rows.length, countUpTo(points.rows, countUpTo(axis, high)) + 1);
      return columnsOf(points, first, last, (row) => scale.x(axis[row]), width, line);
    });
  }

  moveCursors() {
    for (const panel of this.panels) {
      if (!panel.shown || !panel.canvas) continue;
      const width = Math.floor(panel.canvas.parentElement.clientWidth);
      moveCursorsTo(panel.cursors, this.view, width);
      for (const line of panel.lines) {
        const run = line.curve.run;
        const index = line.curve.track.before(this.view.rows[run.index]);
        const value = index < 0 ? undefined : pointsOf(line.curve).map((points) => points.values[indexAt(points, run, this.view)]);
        line.output.textContent = value ? value.map((number) => (number === undefined ? "–" : showNumber(number, 5))).join(", ") : "–";
      }
    }
  }
}

const kindLabel = ({ kind }) => (kind === "metric" ? null : el("span", { class: "kind" }, kind));

const indexAt = (points, run, view) => countUpTo(points.rows, view.rows[run.index]) - 1;

/** The panels of these runs: one for each name without train_ and valid_, with a line for each run that has it. */
function panelsOf(runs) {
  const panels = new Map();
  for (const run of runs) {
    for (const curve of run.curves()) {
      const title = curve.kind === "metric" ? curve.name.replace(/^(train|valid)_/, "") : curve.name;
      const key = `${curve.kind}/${title}`;
      if (!panels.has(key)) panels.set(key, { title, kind: curve.kind, lines: [], shown: false });
      const label = runs.length > 1 ? `${run.name} ${title === curve.name ? "" : curve.name.slice(0, 5)}` : curve.name;
      const dashed = curve.kind === "metric" && curve.name.startsWith("train_");
      panels.get(key).lines.push({ curve, label, dashed, held: curve.kind === "hyper", beside: runs.length > 1 });
    }
  }
  const found = [...panels.values()];
  for (const [kind, count] of Object.entries(FIRST_PANELS)) {
    const first = found.filter((panel) => panel.kind === kind && !(kind === "fact" && DULL.includes(panel.title)));
    first.sort((one, other) => (other.title === "loss") - (one.title === "loss"));
    for (const panel of first.slice(0, count)) panel.shown = true;
  }
  return found;
}
