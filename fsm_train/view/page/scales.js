// Scales: from values to pixels, and which values have a label.

/** A round distance so that there are about `count` of them between two values. */
export function roundStep(low, high, count) {
  const rough = high / Math.max(1, count) - low / Math.max(1, count); // their difference can overflow
  const power = 10 ** Math.floor(Math.log10(rough));
  const lead = rough / power;
  return power * (lead <= 1 ? 1 : lead <= 2 ? 2 : lead <= 5 ? 5 : 10);
}

const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200];

/** Round values between two others, or round times. */
export function ticks(low, high, count, isTime = false) {
  const rough = high / count - low / count;
  const step = (isTime && rough > 1 && SECONDS.find((seconds) => seconds >= rough)) || roundStep(low, high, count);
  if (!(step > 0) || !Number.isFinite(step)) return [low];
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9 && found.length < 50; i++) found.push(i * step);
  return found;
}

/** How many digits tell these labels apart. */
export function digitsOf(labels) {
  const most = Math.max(...labels.map(Math.abs));
  const step = Math.min(...labels.slice(1).map((label, index) => Math.abs(label - labels[index])));
  return step > 0 && Number.isFinite(step) ? Math.max(3, Math.min(15, Math.ceil(Math.log10(most / step)) + 1)) : 4;
}

/** A scale for the heights of a chart. Where it is logarithmic, what is not above 0 is left out of its range. */
export function heights(low, high, top, bottom, logarithmic) {
  if (logarithmic) {
    const [begin, end] = [Math.log10(low), Math.log10(high)];
    const [from, to] = end > begin ? [begin, end] : [begin - 0.5, end + 0.5];
    const y = (value) => bottom - ((Math.log10(value) - from) / (to - from)) * (bottom - top);
    const decades = ticks(from, to, 4).filter(Number.isInteger);
    return { y, ticks: decades.length > 1 ? decades.map((power) => 10 ** power) : [low, high] };
  }
  // Halved, because the difference of two large numbers can overflow.
  const [from, to] = high > low ? [low, high] : [low - (Math.abs(low) || 1) / 2, low + (Math.abs(low) || 1) / 2];
  const half = to / 2 - from / 2;
  const y = (value) => bottom - ((value / 2 - from / 2) / half) * (bottom - top);
  return { y, ticks: ticks(from, to, 5) };
}

export const RIGHT = 16;

/** Where all drawings of this width begin: beside it stand the heights of a curve, and the names of lanes. */
export const leftOf = (width) => (width < 520 ? 84 : 124);

/** The horizontal scale that all drawings share: from positions to pixels and back. */
export function across([low, high], width) {
  const left = leftOf(width);
  const inner = width - left - RIGHT;
  return {
    x: (position) => left + ((position - low) / (high - low)) * inner,
    position: (x) => low + ((x - left) / inner) * (high - low),
  };
}
