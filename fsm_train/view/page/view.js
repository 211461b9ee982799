// What is looked at: the runs, the cursor of each, the part of the axis that is shown. Whoever draws listens here.

export class View {
  constructor(runs, differences) {
    this.runs = runs;
    this.differences = differences;
    this.active = 0;
    this.axis = "epoch";
    this.logarithmic = false;
    this.rows = runs.map((run) => run.length - 1);
    this.listeners = { cursor: [], picture: [] };
    this.range = this.whole();
  }

  get run() {
    return this.runs[this.active];
  }

  get row() {
    return this.rows[this.active];
  }

  /** Call `act` when the cursor moves ("cursor"), or when all has to be drawn again ("picture"). */
  on(what, act) {
    this.listeners[what].push(act);
  }

  tell(what) {
    if (what === "picture") for (const act of this.listeners.picture) act();
    for (const act of this.listeners.cursor) act();
  }

  // ---------------------------------------------------------------------------- cursor

  /** Put the cursor of the active run on a row; those of the others follow to the same place. */
  moveTo(row) {
    const run = this.run;
    const there = Math.max(0, Math.min(run.length - 1, Math.round(row)));
    this.rows = this.runs.map((other) => (other === run ? there : other.rowBeside(run, there, this.axis)));
    this.follow();
  }

  moveBy(count) {
    this.moveTo(this.row + count);
  }

  /** Go to the next of these rows, or to the one before; stay where there is none. */
  jump(rows, direction) {
    const row = this.run.next(rows, this.row, direction);
    if (row !== null) this.moveTo(row);
  }

  moveToPosition(position) {
    this.moveTo(this.run.rowAt(this.axis, position));
  }

  /** Put the cursors of both runs where they differ first; a second time, where what happened then differs. Others follow. */
  goToDifference() {
    const index = Math.max(1, this.active);
    let difference = this.differences[index - 1];
    if (!difference) return;
    const isThere = (one) => one.rows[0] === this.rows[0] && one.rows[1] === this.rows[index];
    if (isThere(difference) && difference.then) difference = difference.then;
    const [first, row] = difference.rows;
    const [run] = this.runs;
    this.rows = this.runs.map((other, at) => (at === 0 ? first : at === index ? row : other.rowBeside(run, first, this.axis)));
    this.follow();
  }

  choose(index) {
    this.active = index;
    this.tell("picture");
  }

  // ------------------------------------------------------------------- what is in sight

  position(index) {
    return this.runs[index].axis(this.axis)[this.rows[index]];
  }

  whole() {
    const ends = this.runs.map((run) => run.axis(this.axis));
    const low = Math.min(...ends.map((axis) => axis[0]));
    const high = Math.max(...ends.map((axis) => axis[axis.length - 1]));
    return high > low ? [low, high] : [low, low + 1];
  }

  setAxis(axis) {
    this.axis = axis;
    this.range = this.whole();
    this.tell("picture");
  }

  toggleLogarithmic() {
    this.logarithmic = !this.logarithmic;
    this.tell("picture");
  }

  /** Show a part of the axis, around a position that stays where it is. */
  zoom(factor, around = this.position(this.active)) {
    const [low, high] = this.range;
    const [least, most] = this.whole();
    const span = Math.max((high - low) * factor, (most - least) / 1e6, Number.EPSILON * Math.abs(most));
    if (span >= most - least) this.range = [least, most];
    else {
      const begin = around - (span * (around - low)) / (high - low);
      this.range = this.within(begin, span);
    }
    this.tell("picture");
  }

  showAll() {
    this.range = this.whole();
    this.tell("picture");
  }

  within(begin, span) {
    const [least, most] = this.whole();
    const low = Math.max(least, Math.min(most - span, begin));
    return [low, low + span];
  }

  /** Move the part that is shown so that the cursor is in it. */
  follow() {
    const [low, high] = this.range;
    const position = this.position(this.active);
    if (position >= low && position <= high) {
      this.tell("cursor");
      return;
    }
    const span = high - low;
    this.range = this.within(position - span / 2, span);
    this.tell("picture");
  }
}
