// The arithmetic of charts: round ticks, moving averages, where a value lies.

// The round number (1, 2 or 5 times a power of ten) that divides `span` into at most `count` parts.
function niceStep(span, count) {
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const factor = [1, 2, 5, 10].find((each) => rough <= each * power * (1 + 1e-9));
  return factor * power;
}

function ticksWithin(low, high, step) {
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, place) => (first + place) * step);
}

function tickLabel(value, step) {
  const size = Math.abs(value);
  if (size < step / 2) return '0';
  if (step < 1e-4 || size >= 1e6) return typeset(Number(value.toPrecision(4)).toExponential());
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const options = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
  return typeset(value.toLocaleString('en-US', options));
}

// Low and high end of an axis that shows all `values`; one value alone gets room on both sides.
function axisRange(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (!isNumber(value)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return [0, 1];
  if (low < high) return [low, high];
  if (low === 0) return [0, 1];
  const room = Math.abs(low) * 0.1;
  return [low - room, high + room];
}

// Exponential moving average without the bias of its start; gaps stay gaps and are passed over.
function smoothed(values, weight) {
  let sum = 0;
  let mass = 0;
  return values.map((value) => {
    if (!isNumber(value)) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

// Where in ascending `sorted` the number nearest to `wanted` stands; -1 of none.
function nearestIndex(sorted, wanted) {
  let low = 0;
  let high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= wanted) low = middle;
    else high = middle;
  }
  return high >= 0 && Math.abs(sorted[high] - wanted) < Math.abs(sorted[low] - wanted)
    ? high
    : Math.min(low, high);
}

// The number below which the share `share` of the finite `values` lies; 0 of none.
function quantile(values, share) {
  const sorted = values.filter(isNumber).sort((one, other) => one - other);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : 0;
}
