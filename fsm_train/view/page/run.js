// One run: the state at each of its rows, its axes, and the rows that one can jump to. It looks up; it decides nothing.

import { Track, countBelow, countUpTo, unpackInts } from "./columns.js";
import { isAbsent, numberOf } from "./format.js";

export const AXES = ["epoch", "step", "line", "time"];

const ENDS = ["STOP_TRAINING", "SUSPEND"];
export const KINDS = ["memory", "command", "hyper", "flag", "stop"];

export class Run {
  constructor(data, index, phaseNames) {
    Object.assign(this, {
      index,
      name: data.name,
      length: data.rows,
      ending: data.ending,
      ended: data.ended,
      replay: data.replay,
      whatIf: data.what_if,
      calls: data.calls,
      superseded: data.superseded,
    });
    this.numbers = unpackInts(data.numbers);
    this.phases = unpackInts(data.phases);
    this.phaseNames = phaseNames;
    this.groups = Object.fromEntries(
      Object.entries(data.groups).map(([part, tracks]) => [part, tracks.map((track) => new Track(track))]),
    );
    this.facts = data.facts.map((track) => new Track(track));
    this.said = data.said.map((track) => new Track(track));
    this.decisions = unpackInts(data.decisions);
    this.metrics = data.curves.map((track) => new Track(track));
    this.packedAxes = data.axes;
    this.axes = {};
  }

  phase(row) {
    return this.phaseNames[this.phases[row]];
  }

  /** Of one part of the state each name with its value at the row, and with the one before where it changed there. */
  values(part, row) {
    const found = [];
    for (const track of this.groups[part]) {
      const index = track.before(row);
      if (index < 0) continue;
      const changed = row > 0 && track.rows[index] === row;
      const value = track.value(index);
      if (isAbsent(value) && !changed) continue;
      found.push({ name: track.name, value, changed, was: changed && index > 0 ? track.value(index - 1) : undefined });
    }
    return found;
  }

  /** The value of one name at the row; undefined where it has none. */
  value(part, name, row) {
    const track = this.groups[part].find((one) => one.name === name);
    const index = track ? track.before(row) : -1;
    return index < 0 ? undefined : track.value(index);
  }

  /** The facts that were measured at the row. */
  factsAt(row) {
    return this.facts.flatMap((track) => {
      const index = track.at(row);
      return index < 0 ? [] : [{ name: track.name, value: track.value(index) }];
    });
  }

  /** What each callback said at the row, by name. */
  saidAt(row) {
    return new Map(
      this.said.flatMap((track) => {
        const index = track.at(row);
        return index < 0 ? [] : [[track.name, track.value(index)]];
      }),
    );
  }

  /** The call of `run` that the row belongs to. */
  call(row) {
    return this.calls.findLast((call) => call.row <= row) ?? this.calls[0];
  }

  /** The names of all callbacks, in the order of the last call. */
  get callbacks() {
    const names = this.calls.toReversed().flatMap((call) => call.callbacks.map((callback) => callback.name));
    return [...new Set([...names, ...this.said.map((track) => track.name)])];
  }

  // ------------------------------------------------------------------------------ axes

  hasAxis(name) {
    return name !== "time" || "time" in this.packedAxes;
  }

  /** The position of each row on an axis. */
  axis(name) {
    this.axes[name] ??= this.makeAxis(name);
    return this.axes[name];
  }

  makeAxis(name) {
    if (name === "line" || !this.hasAxis(name)) return this.numbers;
    if (name === "step") {
      const track = this.groups.counters.find((one) => one.name === "step");
      const found = new Float64Array(this.length);
      for (let row = 0, index = -1, highest = 0; row < this.length; row++) {
        while (index + 1 < track.rows.length && track.rows[index + 1] <= row) index++;
        found[row] = highest = Math.max(highest, numberOf(track.value(index)) ?? 0);
      }
      return found;
    }
    const { parts, at } = this.packedAxes[name];
    return unpackInts(at).map((position) => position / parts);
  }

  /** The last row that is at most at this position. */
  rowAt(axis, position) {
    return Math.max(0, countUpTo(this.axis(axis), position) - 1);
  }

  /** The row that another run's row corresponds to: at the same position, and as far among the rows that share it. */
  rowBeside(other, row, axis) {
    const theirs = other.axis(axis);
    const mine = this.axis(axis);
    const position = theirs[row];
    const past = row - countBelow(theirs, position);
    const begin = countBelow(mine, position);
    const end = countUpTo(mine, position);
    return begin < end ? Math.min(begin + past, end - 1) : Math.max(0, end - 1);
  }

  // ----------------------------------------------------------------------------- jumps

  /** The next of these rows after `row`, or before it; null if there is none. */
  next(rows, row, direction) {
    const index = direction > 0 ? countUpTo(rows, row) : countUpTo(rows, row - 1) - 1;
    return index >= 0 && index < rows.length ? rows[index] : null;
  }

  /** The rows at which a counter rose, such as `step`. */
  rowsOf(counter) {
    return this.groups.counters.find((track) => track.name === counter)?.rows ?? [];
  }

  /** The rows of a phase, by its code. */
  rowsAt(code) {
    this.byPhase ??= new Map();
    if (!this.byPhase.has(code)) {
      const found = [];
      for (let row = 0; row < this.length; row++) if (this.phases[row] === code) found.push(row);
      this.byPhase.set(code, found);
    }
    return this.byPhase.get(code);
  }

  /** The rows at which a callback answered, each with how much that did: an index into `KINDS`. */
  marks(name) {
    this.markCache ??= new Map();
    if (!this.markCache.has(name)) this.markCache.set(name, this.findMarks(name));
    return this.markCache.get(name);
  }

  findMarks(name) {
    const kinds = new Map();
    const memory = this.groups.memory.find((track) => track.name === name);
    for (const row of memory?.rows ?? []) if (row > 0) kinds.set(row, 0);
    const said = this.said.find((track) => track.name === name);
    const rows = said?.rows ?? [];
    for (let index = 0; index < rows.length; index++) kinds.set(rows[index], kindOf(said.value(index)));
    const found = [...kinds.keys()].sort((one, other) => one - other);
    return { rows: Float64Array.from(found), kinds: Uint8Array.from(found, (row) => kinds.get(row)) };
  }

  // ---------------------------------------------------------------------------- curves

  /** What can be drawn: metrics where they were measured, facts, and hyper-parameters. */
  curves() {
    const of = (kind, tracks) => tracks.map((track) => ({ kind, name: track.name, track, run: this }));
    return [...of("metric", this.metrics), ...of("hyper", this.groups.hyper), ...of("fact", this.facts)];
  }
}

function kindOf(said) {
  if (typeof said.flags === "string" && said.flags) return ENDS.some((flag) => said.flags.includes(flag)) ? 4 : 3;
  if (said.hyper || said.sets) return 2;
  return said.commands ? 1 : 0;
}

/** The numbers of a curve with the row of each; a value per parameter group is as many curves. */
export function pointsOf(curve) {
  curve.points ??= findPoints(curve.track);
  return curve.points;
}

function findPoints(track) {
  const rows = track.rows;
  const series = [];
  for (let index = 0; index < rows.length; index++) {
    const value = track.value(index);
    const parts = Array.isArray(value) ? value.slice(0, 8) : [value];
    parts.forEach((part, group) => {
      const number = numberOf(part);
      if (number === undefined) return;
      series[group] ??= { rows: [], values: [] };
      series[group].rows.push(rows[index]);
      series[group].values.push(number);
    });
  }
  return series.filter(Boolean).map(({ rows: at, values }) => ({ rows: Float64Array.from(at), values: Float64Array.from(values) }));
}
