// The keyboard: everything that the mouse does. Keys in a field, or with Ctrl, are the browser's.

import { byId } from "./dom.js";

/** What each key does, and how the help says it. Those of a group do the same. */
export function bindings(view, actions) {
  const by = (count) => () => view.moveBy(count);
  const jump = (rows, direction) => () => view.jump(rows(view.run), direction);
  const decisions = (run) => run.decisions;
  const steps = (run) => run.rowsOf("step");
  const epochs = (run) => run.rowsOf("epoch");
  return [
    [["j", "ArrowRight"], "next line", by(1)],
    [["k", "ArrowLeft"], "line before", by(-1)],
    [["n"], "next decision", jump(decisions, 1)],
    [["N"], "decision before", jump(decisions, -1)],
    [["s"], "next optimizer step", jump(steps, 1)],
    [["S"], "optimizer step before", jump(steps, -1)],
    [["e"], "next epoch", jump(epochs, 1)],
    [["E"], "epoch before", jump(epochs, -1)],
    [["Home"], "first line", () => view.moveTo(0)],
    [["End"], "last line", () => view.moveTo(Infinity)],
    [["d"], "first difference of two runs", () => view.goToDifference()],
    [["r"], "next run", () => view.choose((view.active + 1) % view.runs.length)],
    [["+", "="], "look closer", () => view.zoom(0.5)],
    [["-"], "look from further away", () => view.zoom(2)],
    [["0"], "all of it", () => view.showAll()],
    [["x"], "next axis", actions.nextAxis],
    [["l"], "logarithmic heights", () => view.toggleLogarithmic()],
    [["g"], "type the number of a line", () => byId("line").focus()],
    [["t"], "light or dark", actions.toggleTheme],
    [["?"], "this help", actions.toggleHelp],
  ];
}

export function listen(keys) {
  const acts = new Map(keys.flatMap(([names, , act]) => names.map((name) => [name, act])));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const field = event.target.closest?.("input, select, textarea");
    if (field) {
      if (event.key === "Escape" || event.key === "Enter") field.blur();
      return;
    }
    const act = acts.get(event.key);
    if (!act) return;
    event.preventDefault();
    act();
  });
}
