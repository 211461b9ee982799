// The page: unpack the data, and put the parts together.

import { Curves } from "./curves.js";
import { byId, colourOf, el, fill } from "./dom.js";
import { plural, showValue } from "./format.js";
import { Inspector } from "./inspector.js";
import { bindings, listen } from "./keys.js";
import { Lanes } from "./lanes.js";
import { Machine } from "./machine.js";
import { AXES, Run } from "./run.js";
import { View } from "./view.js";
import { whatIfTable } from "./whatif.js";

/** The data of the page: deflated JSON in base64. */
async function readData() {
  const bytes = Uint8Array.from(atob(byId("data").textContent.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function headings(view) {
  return view.runs.map((run) => {
    const call = run.calls[run.calls.length - 1];
    const notes = [
      call.plan,
      plural(run.length, "line"),
      run.calls.length > 1 ? `${plural(run.calls.length, "call")} of run` : "",
      run.superseded ? `${plural(run.superseded, "call")} superseded` : "",
    ];
    const replay = run.replay.row === null
      ? el("span", { class: `replay ${run.replay.verdict}` }, run.replay.text)
      : el("button", { type: "button", class: `replay link ${run.replay.verdict}`, on: { click: () => (view.choose(run.index), view.moveTo(run.replay.row)) } }, run.replay.text);
    return el(
      "article",
      { class: `run ${run.ended || "open"}`, style: { "--series": `var(${colourOf(run.index)})` } },
      el("h2", {}, el("span", { class: "swatch" }), run.name),
      el("p", { class: "ending" }, run.ending),
      el("p", { class: "notes" }, notes.filter(Boolean).join("  ·  ")),
      el("p", { class: "notes" }, replay),
    );
  });
}

function differences(view) {
  const lines = view.differences.flatMap((difference, index) => {
    const names = `${view.runs[0].name} and ${view.runs[index + 1].name}`;
    if (!difference) return [el("p", { class: "quiet" }, `${names} do not differ.`)];
    const go = () => {
      view.active = index + 1;
      view.goToDifference();
      view.tell("picture");
    };
    const sentence = (one) => `${one.kind}, ${one.what}: ${showValue(one.a)} against ${showValue(one.b)}`;
    return [
      el("p", {}, el("button", { type: "button", class: "link", on: { click: go } }, `${names} differ first in`), " ", sentence(difference)),
      difference.then ? el("p", { class: "quiet" }, "what happened then: ", sentence(difference.then)) : null,
    ];
  });
  return lines.length ? lines : null;
}

function section(id, content) {
  byId(id).hidden = !content;
  if (content) fill(byId(id).querySelector(".content"), content);
}

function axisButtons(view) {
  const buttons = () =>
    AXES.map((axis) => {
      const there = view.runs.every((run) => run.hasAxis(axis));
      return el(
        "button",
        {
          type: "button",
          "aria-pressed": String(view.axis === axis),
          disabled: !there,
          title: there ? false : "This log has no time: let a callback need the fact elapsed, or bind a time to the logger",
          on: { click: () => view.setAxis(axis) },
        },
        axis,
      );
    });
  view.on("picture", () => {
    const focused = [...byId("axes").children].indexOf(document.activeElement);
    fill(byId("axes"), buttons());
    byId("axes").children[focused]?.focus();
    byId("log").setAttribute("aria-pressed", String(view.logarithmic));
  });
}

function runButtons(view) {
  byId("runs").hidden = view.runs.length < 2;
  view.on("picture", () => {
    const focused = [...byId("runs").children].indexOf(document.activeElement);
    fill(
      byId("runs"),
      view.runs.map((run) =>
        el(
          "button",
          { type: "button", "aria-pressed": String(run.index === view.active), on: { click: () => view.choose(run.index) } },
          el("span", { class: "swatch", style: { background: `var(${colourOf(run.index)})` } }),
          run.name,
        ),
      ),
    );
    byId("runs").children[focused]?.focus();
  });
}

function toggleTheme(view) {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  view.tell("picture");
}

function start(data) {
  const view = new View(data.runs.map((run, index) => new Run(run, index, data.machine.phases)), data.differences);
  fill(byId("headings"), headings(view));
  document.body.classList.toggle("many", view.runs.length > 2);
  section("differences", differences(view));
  section("what-if", whatIfTable(view));
  axisButtons(view);
  runButtons(view);
  new Curves(view, byId("curves"), byId("picker"));
  new Lanes(view, byId("lanes"));
  new Inspector(view, {
    place: byId("place"),
    said: byId("said"),
    state: byId("state"),
    memory: byId("memory"),
    line: byId("line"),
    spoken: byId("spoken"),
  });
  new Machine(view, data.machine, byId("machine"), byId("moves"));

  const help = byId("help");
  const actions = {
    nextAxis: () => {
      const there = AXES.filter((axis) => view.runs.every((run) => run.hasAxis(axis)));
      view.setAxis(there[(there.indexOf(view.axis) + 1) % there.length]);
    },
    toggleTheme: () => toggleTheme(view),
    toggleHelp: () => (help.open ? help.close() : help.showModal()),
  };
  const keys = bindings(view, actions);
  listen(keys);
  fill(byId("keys"), keys.map(([names, what]) => el("div", {}, el("dt", {}, names.map((name) => el("kbd", {}, name.replace("ArrowRight", "→").replace("ArrowLeft", "←")))), el("dd", {}, what))));
  for (const button of document.querySelectorAll("[data-key]")) {
    const [, what, act] = keys.find(([names]) => names.includes(button.dataset.key));
    button.addEventListener("click", act);
    button.setAttribute("aria-label", button.getAttribute("aria-label") ?? what);
    button.title = `${what} (${button.dataset.key})`;
    if (button.dataset.key === "d") button.hidden = view.runs.length < 2;
  }
  byId("line").addEventListener("change", (event) => {
    const number = Number(event.target.value);
    const row = view.run.numbers.findLastIndex((other) => other <= number);
    view.moveTo(row);
  });
  byId("close-help").addEventListener("click", () => help.close());
  new ResizeObserver(() => view.tell("picture")).observe(byId("curves"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view.tell("picture"));
  view.tell("picture");
  document.documentElement.dataset.ready = "yes";
  return view;
}

readData().then(start, (error) => {
  byId("headings").textContent = `This page cannot be read here: ${error.message}. It needs a browser of 2023 or later.`;
});
