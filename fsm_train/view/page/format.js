// Values of a log as text. Everything was made printable when it was packed; nothing here makes markup.

const TAGS = {
  $float: (content) => ({ nan: "NaN", inf: "∞", "-inf": "−∞" })[content] ?? `NaN (${content})`,
  $int: (content) => content,
  $str: (content) => content,
  $repr: (content) => content,
  $enum: (content) => content,
  $list: (content) => `[${content.map(showValue).join(", ")}]`,
  $set: (content) => `{${content.map(showValue).join(", ")}}`,
  $map: (content) => `{${content.map(([name, part]) => `${showValue(name)}: ${showValue(part)}`).join(", ")}}`,
  $absent: () => "–",
};

const isRecord = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** A number in few digits, with a true minus. */
export function showNumber(value, digits = 6) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (Object.is(value, -0)) return "−0";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return group(String(value));
  const text = Math.abs(value) < 1e-4 || Math.abs(value) >= 1e9 ? value.toExponential(3).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(digits)));
  return text.replace("e+", "e").replace(/-/g, "−");
}

function group(digits) {
  return digits.replace("-", "−").replace(/\B(?=(\d{3})+$)/g, "\u2009");
}

/** Any JSON of a log, as it would be typed: records as calls, arrays as tuples. */
export function showValue(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "number") return showNumber(value);
  if (typeof value === "string") return value === "" ? "none" : value;
  if (Array.isArray(value)) return `(${value.map(showValue).join(", ")}${value.length === 1 ? "," : ""})`;
  const names = Object.keys(value);
  if (names.length === 1 && Object.hasOwn(TAGS, names[0])) {
    try {
      return TAGS[names[0]](value[names[0]]);
    } catch {
      return JSON.stringify(value);
    }
  }
  const parts = names.filter((name) => name !== "$").map((name) => `${name}=${showValue(value[name])}`);
  return Object.hasOwn(value, "$") ? `${showValue(value.$)}(${parts.join(", ")})` : `{${parts.join(", ")}}`;
}

/** What a callback said, in a few words. */
export function inShort(said) {
  const commands = (said.commands ?? []).map((command) => showValue(command.$));
  const hyper = [...(said.sets ?? []), ...Object.keys(said.hyper ?? {})].map((name) => `sets ${name}`);
  const parts = [showValue(said.flags ?? "").replace(/\|/g, ", "), ...hyper, ...commands];
  return parts.filter((part) => part !== "none").join(", ") || showValue(said.reason ?? "");
}

/** The value with all of its digits, for a title. */
export function showWhole(value) {
  return typeof value === "number" ? String(value) : showValue(value);
}

/** The number that a curve has for a value; undefined for what is no number. */
export function numberOf(value) {
  if (typeof value === "number") return value;
  if (!isRecord(value)) return undefined;
  if (typeof value.$float === "string") return { inf: Infinity, "-inf": -Infinity }[value.$float] ?? NaN;
  return typeof value.$int === "string" ? Number(value.$int) : undefined;
}

/** Whether the name was given up at this row. */
export const isAbsent = (value) => isRecord(value) && value.$absent === 0;

/** Seconds as 1:02:03, with tenths and less where there are some. */
export function showSeconds(seconds) {
  const whole = Math.floor(seconds + 1e-6);
  const rest = seconds - whole > 1e-3 ? (seconds - whole).toFixed(3).slice(1).replace(/0+$/, "") : "";
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  return `${hours ? `${hours}:${two(minutes)}` : minutes}:${two(whole % 60)}${rest}`;
}

export const plural = (count, noun) => `${showNumber(count)} ${noun}${count === 1 ? "" : "s"}`;
