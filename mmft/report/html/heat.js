// The importance of a picture's patches, laid over it.

// Dark violet, magenta, orange, yellow: seen on pictures of any colour, and ordered without colour vision.
const HEAT_STOPS = [
  [38, 12, 81],
  [136, 34, 106],
  [209, 58, 74],
  [245, 125, 21],
  [252, 230, 100],
];

function heatColour(share) {
  const place = share * (HEAT_STOPS.length - 1);
  const low = Math.min(HEAT_STOPS.length - 2, Math.floor(place));
  const mixed = HEAT_STOPS[low].map((value, channel) =>
    Math.round(value + (place - low) * (HEAT_STOPS[low + 1][channel] - value)),
  );
  return `rgb(${mixed.join(',')})`;
}

function hasPatches(sample) {
  return (sample.heat?.patches ?? []).some((weight) => weight > 0);
}

function heatOverlay({ grid: [rows, columns], patches }) {
  const most = Math.max(...patches);
  return makeSvg(
    'svg',
    { class: 'heat', viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    patches.map((weight, place) =>
      makeSvg('rect', {
        x: place % columns,
        y: Math.floor(place / columns),
        width: 1,
        height: 1,
        fill: heatColour(weight / most),
        'fill-opacity': (0.1 + 0.6 * (weight / most)).toFixed(2),
      }),
    ),
  );
}

function heatLegend(heat) {
  const shares = Object.entries(heat.shares ?? {}).filter(([, share]) => isNumber(share));
  return make(
    'div',
    { class: 'heat-legend' },
    make('span', { class: 'scale' }, 'none', make('i', { class: 'ramp heat-ramp' }), 'most'),
    shares.length
      ? make('span', {}, shares.map(([name, share]) => `${name} ${Math.round(100 * share)}%`).join(', '))
      : null,
  );
}
