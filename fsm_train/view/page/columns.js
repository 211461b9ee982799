// Columns, back from the form in which columns.py packs them. Nothing here knows what they mean.

/** Whole numbers that were packed as distances, or as pairs of a distance and a count. */
export function unpackInts(column) {
  const distances = column.d;
  let sum = 0;
  if (distances) {
    const found = new Float64Array(distances.length);
    for (let i = 0; i < distances.length; i++) found[i] = sum += distances[i];
    return found;
  }
  const runs = column.r;
  let length = 0;
  for (let i = 1; i < runs.length; i += 2) length += runs[i];
  const found = new Float64Array(length);
  for (let i = 0, at = 0; i < runs.length; i += 2) {
    for (let count = runs[i + 1]; count > 0; count--) found[at++] = sum += runs[i];
  }
  return found;
}

/** The number of entries of a sorted array that are at most `value`: where one that is larger would be put. */
export const countUpTo = (sorted, value) => countWhile(sorted, (entry) => entry <= value);

/** The number of entries of a sorted array that are less than `value`: where the first one that is not stands. */
export const countBelow = (sorted, value) => countWhile(sorted, (entry) => entry < value);

function countWhile(sorted, isBefore) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (isBefore(sorted[middle])) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The rows at which one value changed, or was measured, and the value at each of them. Unpacked when first used. */
export class Track {
  constructor(packed) {
    this.name = packed.name;
    this.packed = packed;
  }

  get rows() {
    return this.unpacked ? this.unpackedRows : this.unpack().unpackedRows;
  }

  unpack() {
    const { rows, values } = this.packed;
    this.unpackedRows = unpackInts(rows);
    this.plain = values.i ? unpackInts(values.i) : values.n;
    this.codes = values.v ? unpackInts(values.c) : null;
    this.distinct = values.v;
    this.unpacked = true;
    return this;
  }

  /** The value of the entry with this index. */
  value(index) {
    return this.codes ? this.distinct[this.codes[index]] : this.plain[index];
  }

  /** The index of the last entry at or before the row; -1 if there is none. */
  before(row) {
    return countUpTo(this.rows, row) - 1;
  }

  /** The index of the entry at this very row; -1 if there is none. */
  at(row) {
    const index = this.before(row);
    return index >= 0 && this.rows[index] === row ? index : -1;
  }
}
