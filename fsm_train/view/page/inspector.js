// The inspector: the state where the cursor stands, what changed since the line before, what each callback said and
// remembers.

import { colourOf, el, fill } from "./dom.js";
import { isAbsent, plural, showNumber, showValue, showWhole } from "./format.js";

const TITLES = { counters: "Counters", state: "Control", hyper: "Hyper-parameters", metrics: "Metrics", facts: "Facts" };
const MOST_NAMES = 200;

export class Inspector {
  constructor(view, elements) {
    Object.assign(this, { view, elements });
    view.on("cursor", () => this.draw());
  }

  draw() {
    const { view, elements } = this;
    const { run, row } = view;
    fill(elements.place, place(view));
    fill(elements.said, said(run, row));
    fill(elements.state, stateTable(view));
    fill(elements.memory, memories(run, row));
    elements.line.value = run.numbers[row];
    elements.line.max = run.numbers[run.length - 1];
    elements.spoken.textContent = `${run.phase(row)}, line ${run.numbers[row]}`;
  }
}

function place({ run, row, runs }) {
  const counter = (name) => showValue(run.value("counters", name, row) ?? 0);
  const player = run.value("state", "player", row);
  return [
    el(
      "p",
      { class: "phase" },
      runs.length > 1 ? el("span", { class: "swatch", style: { background: `var(${colourOf(run.index)})` } }) : null,
      run.phase(row),
      player && !isAbsent(player) ? el("span", { class: "quiet" }, showValue(player)) : null,
    ),
    el(
      "dl",
      { class: "counters" },
      ["epoch", "batch", "step"].map((name) => el("div", {}, el("dt", {}, name), el("dd", {}, counter(name)))),
      el("div", {}, el("dt", {}, "line"), el("dd", {}, showNumber(run.numbers[row]))),
    ),
  ];
}

/** What the callbacks said at a row, in sentences; and who was consulted and said nothing. */
function said(run, row) {
  const answers = run.saidAt(row);
  const call = run.call(row);
  const changed = new Map(run.values("memory", row).map((memory) => [memory.name, memory.changed && row !== call.row]));
  const consulted = call.callbacks.filter((callback) => callback.at.includes(run.phases[row]));
  const names = new Set([...consulted.map((callback) => callback.name), ...answers.keys()]);
  if (run.phase(row) === "ready") return el("p", { class: "quiet" }, row === 0 ? "The training begins." : "A further call of run begins.");
  if (!names.size) return el("p", { class: "quiet" }, "No callback is consulted here.");
  return el(
    "ul",
    { class: "answers" },
    [...names].map((name) => {
      const answer = answers.get(name);
      const silent = changed.get(name) ? "only remembers" : "says nothing";
      return el("li", {}, el("b", {}, name), answer ? answerParts(run, row, answer) : el("span", { class: "quiet" }, silent));
    }),
  );
}

function answerParts(run, row, answer) {
  const flags = typeof answer.flags === "string" && answer.flags ? answer.flags.split("|") : [];
  return [
    flags.map((flag) => el("span", { class: "flag" }, flag)),
    (answer.sets ?? []).map((name) => el("span", { class: "set" }, `${name} = ${showValue(run.value("hyper", name, row))}`)),
    Object.entries(answer.hyper ?? {}).map(([name, value]) => el("span", { class: "set" }, `${name} = ${showValue(value)}`)),
    (answer.commands ?? []).map((command) => el("code", {}, showValue(command))),
    answer.reason ? el("span", { class: "reason" }, showValue(answer.reason)) : null,
  ];
}

/** The state of each run in a column, part by part; what changed since the line before says what it was. */
function stateTable(view) {
  const several = view.runs.length > 1;
  const columnsOfPart = (part) =>
    view.runs.map((run) => {
      const row = view.rows[run.index];
      return new Map((part === "facts" ? run.factsAt(row) : run.values(part, row)).map((one) => [one.name, one]));
    });
  return el(
    "table",
    { class: several ? "values several" : "values", style: { "--columns": view.runs.length } },
    several
      ? el("thead", {}, el("tr", {}, el("td", {}), view.runs.map((run) => el("th", { scope: "col", class: run.index === view.active ? "now" : "" }, run.name))))
      : null,
    Object.entries(TITLES).map(([part, title]) => partRows(view, title, columnsOfPart(part))),
  );
}

function partRows(view, title, columns) {
  const names = [...new Set(columns.flatMap((column) => [...column.keys()]))];
  if (!names.length) return null;
  return el(
    "tbody",
    {},
    el("tr", { class: "part" }, el("th", { scope: "rowgroup", colspan: columns.length + 1 }, title)),
    names.slice(0, MOST_NAMES).map((name) => {
      const cells = columns.map((column) => column.get(name));
      const texts = cells.map((cell) => (cell ? showValue(cell.value) : "–"));
      const apart = texts.some((text) => text !== texts[0]);
      return el(
        "tr",
        { class: cells[view.active]?.changed ? "changed-row" : "" },
        el("th", { scope: "row" }, name, apart ? el("span", { class: "apart", title: "The runs differ here" }, " ≠") : null),
        cells.map((cell, index) => valueCell(cell, texts[index])),
      );
    }),
    names.length > MOST_NAMES ? el("tr", {}, el("td", { colspan: columns.length + 1 }, `and ${plural(names.length - MOST_NAMES, "more name")}`)) : null,
  );
}

function valueCell(cell, text) {
  if (!cell) return el("td", { class: "quiet" }, "–");
  return el(
    "td",
    { title: showWhole(cell.value), class: cell.changed ? "changed" : "" },
    cell.changed && cell.was !== undefined ? el("span", { class: "was" }, showValue(cell.was), el("span", { "aria-label": "became" }, " → ")) : null,
    text,
  );
}

/** Each callback of this call of `run`: how it was made, and its memory. */
function memories(run, row) {
  const call = run.call(row);
  const memory = new Map(run.values("memory", row).map((one) => [one.name, one]));
  const consulted = (callback) => callback.at.includes(run.phases[row]);
  const made = new Map(call.callbacks.map((callback) => [callback.name, callback]));
  const names = [...new Set([...made.keys(), ...memory.keys()])].slice(0, MOST_NAMES);
  if (!names.length) return el("p", { class: "quiet" }, "This training has no callbacks.");
  return names.map((name) => {
    const callback = made.get(name);
    const one = memory.get(name);
    const changed = one?.changed && row !== call.row;
    return el(
      "div",
      { class: `callback${callback && consulted(callback) ? " consulted" : ""}` },
      el("h4", {}, name),
      callback ? el("code", { class: "made" }, callback.made) : null,
      el(
        "p",
        { class: changed ? "memory changed" : "memory" },
        changed && one.was !== undefined ? el("span", { class: "was" }, showValue(one.was), " → ") : null,
        one && one.value !== null ? showValue(one.value) : el("span", { class: "quiet" }, "remembers nothing"),
      ),
    );
  });
}
