// The machine: its phases in the brackets that they open and close, the one of the cursor lit, and where it can go.

import { el, fill } from "./dom.js";

export class Machine {
  constructor(view, machine, root, moves) {
    Object.assign(this, { view, machine, root, moves });
    this.buttons = [];
    fill(root, this.bracket(machine.brackets));
    view.on("cursor", () => this.draw());
  }

  bracket(parts) {
    return el(
      "ol",
      {},
      parts.map((part) => el("li", {}, Array.isArray(part) ? this.bracket(part) : this.button(part))),
    );
  }

  button(code) {
    const go = () => {
      const rows = this.view.run.rowsAt(code);
      if (rows.length) this.view.moveTo(this.view.run.next(rows, this.view.row, 1) ?? rows[0]);
    };
    this.buttons[code] = el("button", { type: "button", class: "phase-button", on: { click: go } }, this.machine.phases[code]);
    return this.buttons[code];
  }

  draw() {
    const { run, row } = this.view;
    const now = run.phases[row];
    const before = row > 0 ? run.phases[row - 1] : -1;
    this.buttons.forEach((button, code) => {
      const there = run.rowsAt(code).length > 0;
      button.classList.toggle("lit", code === now);
      button.classList.toggle("before", code === before && code !== now);
      button.toggleAttribute("disabled", !there);
      button.title = there ? "Go to the next line of this phase" : "The log has no line of this phase";
      if (code === now) button.setAttribute("aria-current", "step");
      else button.removeAttribute("aria-current");
    });
    if (this.shown === now) return;
    this.shown = now;
    const moves = this.machine.moves[now];
    fill(
      this.moves,
      moves.length
        ? moves.map((move) => el("tr", {}, el("td", {}, move.from), el("td", {}, move.if || "else"), el("td", {}, move.do), el("td", {}, move.to)))
        : el("tr", {}, el("td", { colspan: 4, class: "quiet" }, "The machine stays here.")),
    );
  }
}
