// The timeline: where the machine was, and in a lane for each callback how much it said. The higher a mark, the more it did.

import { countUpTo } from "./columns.js";
import { colourOf, el, fill, sharp, themed } from "./dom.js";
import { clipped } from "./drawing.js";
import { inShort, showNumber, showSeconds } from "./format.js";
import { drag, moveCursorsTo, zoomByWheel } from "./pointer.js";
import { KINDS } from "./run.js";
import { RIGHT, across, digitsOf, leftOf, ticks } from "./scales.js";

const LANE = 22;
const AXIS = 24;
const MARK_HEIGHTS = [3, 6, 9, 14, 18];
const LABEL_ROOM = 84; // pixels between two lines of the log, from which on the phases are named
const MOST_LANES = 40;

export class Lanes {
  constructor(view, root) {
    Object.assign(this, { view, root });
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.cursors = view.runs.map((run) => el("div", { class: "cursor", "data-run": run.index }));
    this.names = el("ol", { class: "lane-names" });
    this.plot = el("div", { class: "plot", role: "img", "aria-label": "Timeline" }, this.canvas, this.cursors);
    drag(this.plot, (x, width) => view.moveToPosition(across(view.range, width).position(x)));
    zoomByWheel(this.plot, view);
    fill(root, this.plot, this.names);
    view.on("picture", () => this.draw());
    view.on("cursor", () => moveCursorsTo(this.cursors, view, Math.floor(this.plot.clientWidth)));
  }

  /** The lanes of the active run: its phases by the brackets that they are in, and one for each callback. */
  lanes() {
    const { run } = this.view;
    const which = (pattern) => run.phaseNames.map((name) => pattern.test(name));
    const phases = [
      ["run", which(/^(ready|setup|train_.*|suspend|teardown|done|suspended|failed)$/)],
      ["epochs", which(/^epoch_/)],
      ["batches", which(/^(batch|loss|backward|step)_/)],
      ["validation", which(/^valid_/)],
    ];
    return [
      ...phases.map(([name, shown]) => ({ name, shown })),
      ...run.callbacks.slice(0, MOST_LANES).map((name) => ({ name, marks: run.marks(name), said: run.said.find((track) => track.name === name) })),
    ];
  }

  draw() {
    const lanes = this.lanes();
    const height = lanes.length * LANE + AXIS;
    const { run } = this.view;
    fill(
      this.names,
      lanes.map((lane) =>
        el(
          "li",
          { style: { height: `${LANE}px` } },
          lane.marks
            ? el("button", { type: "button", class: "link", title: `${lane.name}: go to the next answer`, on: { click: () => this.view.jump(lane.marks.rows, 1) } }, lane.name)
            : lane.name,
        ),
      ),
    );
    this.names.style.width = `${leftOf(Math.floor(this.plot.clientWidth)) - 22}px`;
    const surface = sharp(this.canvas, height);
    if (!surface) return;
    const { pen, width } = surface;
    const scale = across(this.view.range, width);
    const axis = run.axis(this.view.axis);
    const first = Math.max(0, countUpTo(axis, this.view.range[0] - 1e-12) - 1);
    const last = Math.min(run.length, countUpTo(axis, this.view.range[1]));
    this.drawAxis(pen, scale, width, lanes.length * LANE);
    pen.save();
    pen.beginPath();
    pen.rect(leftOf(width) - 2, 0, width, height);
    pen.clip();
    lanes.forEach((lane, index) => {
      const base = (index + 1) * LANE - 2;
      pen.fillStyle = themed("--line");
      pen.fillRect(leftOf(width), base + 1, width - leftOf(width) - RIGHT, 1);
      if (lane.marks) drawAnswers(pen, lane, run, axis, first, last, scale, base);
      else drawPhases(pen, run, lane, axis, first, last, scale, base, width - RIGHT);
    });
    pen.restore();
  }

  drawAxis(pen, scale, width, top) {
    pen.fillStyle = themed("--quiet");
    const left = leftOf(width);
    pen.textBaseline = "top";
    pen.textAlign = "center";
    const [low, high] = this.view.range;
    const isTime = this.view.axis === "time";
    const count = Math.max(2, Math.floor((width - left - RIGHT) / 90));
    const labels = ticks(low, high, count, isTime);
    const digits = digitsOf(labels);
    const number = (value) => showNumber(Number(value.toPrecision(digits)), digits);
    const show = isTime && high >= 60 ? (value) => showSeconds(value) : (value) => number(value) + (isTime ? " s" : "");
    for (const tick of labels) {
      const x = scale.x(tick);
      pen.fillRect(Math.round(x), top, 1, 4);
      pen.fillText(show(tick), Math.max(left, Math.min(width - RIGHT - 8, x)), top + 7);
    }
    pen.textAlign = "right";
    pen.fillText(this.view.axis, left - 14, top + 7);
  }
}

function drawPhases(pen, run, lane, axis, first, last, scale, base, right) {
  pen.fillStyle = themed("--phase");
  pen.textBaseline = "middle";
  pen.textAlign = "left";
  let drawn = -Infinity;
  for (let row = first; row < last; row++) {
    if (!lane.shown[run.phases[row]]) continue;
    const x = scale.x(axis[row]);
    if (x - drawn < 1) continue;
    drawn = x;
    pen.fillRect(x - 0.75, base - 14, 1.5, 14);
    const room = Math.min(right, row + 1 < run.length ? scale.x(axis[row + 1]) : right) - x;
    if (room >= LABEL_ROOM) {
      pen.globalAlpha = 0.16;
      pen.fillRect(x, base - 14, room - 1, 14);
      pen.globalAlpha = 1;
      pen.fillText(clipped(pen, run.phase(row), room - 8), x + 5, base - 7);
    }
  }
}

/** The marks of a callback: of those that share a pixel the one that did most; where there is room, what it said. */
function drawAnswers(pen, { marks, said }, run, axis, first, last, scale, base) {
  const begin = countUpTo(marks.rows, first - 1);
  const end = countUpTo(marks.rows, last - 1);
  pen.textBaseline = "middle";
  pen.textAlign = "left";
  const colours = KINDS.map((kind) => themed(kind === "memory" ? "--faint" : kind === "stop" ? "--accent" : colourOf(run.index)));
  let at = -Infinity;
  let most = -1;
  const close = () => {
    if (most < 0) return;
    pen.fillStyle = colours[most];
    pen.fillRect(at - 0.75, base - MARK_HEIGHTS[most], most === 4 ? 3 : 1.5, MARK_HEIGHTS[most]);
  };
  for (let i = begin; i < end; i++) {
    const x = scale.x(axis[marks.rows[i]]);
    if (x - at >= 1) {
      close();
      at = x;
      most = marks.kinds[i];
    } else if (marks.kinds[i] > most) most = marks.kinds[i];
    const room = scale.x(axis[marks.rows[i + 1] ?? run.length - 1]) - x;
    if (room < LABEL_ROOM || !said) continue;
    const index = said.at(marks.rows[i]);
    pen.fillStyle = themed("--quiet");
    pen.fillText(clipped(pen, index < 0 ? "remembers" : inShort(said.value(index)), room - 10), x + 6, base - 7);
  }
  close();
}
