// What series say at a step, in words and in a table.

// What a series says at a step, or at its own nearest one.
function readSeries(series, step) {
  const place = nearestIndex(series.x, step);
  if (place < 0) return null;
  return {
    series,
    x: series.x[place],
    raw: series.y[place],
    shown: series.shown[place],
    isSmoothed: series.shown !== series.y,
  };
}

function readingText({ series, x, raw, shown, isSmoothed }, step) {
  const where = x === step ? '' : ` (at ${formatReading(x)})`;
  return `${series.label} ${formatReading(raw)}${isSmoothed ? `, smoothed ${formatReading(shown)}` : ''}${where}`;
}

function readingRow(reading, step) {
  return make(
    'span',
    {},
    make('i', { class: `swatch ink-${reading.series.ink}` }),
    readingText(reading, step),
  );
}

function seriesTable(chart, series) {
  const steps = [...new Set(series.flatMap((each) => each.x))].sort((one, other) => one - other);
  const lookups = series.map((each) => new Map(each.x.map((x, place) => [x, each.y[place]])));
  const head = [chart.x_label || 'x', ...series.map((each) => each.label)];
  return make(
    'table',
    { class: 'numbers' },
    make(
      'thead',
      {},
      make(
        'tr',
        {},
        head.map((label) => make('th', { scope: 'col' }, label)),
      ),
    ),
    make(
      'tbody',
      {},
      steps.map((step) =>
        make(
          'tr',
          {},
          make('th', { scope: 'row' }, String(step)),
          lookups.map((lookup) => make('td', {}, formatReading(lookup.get(step)))),
        ),
      ),
    ),
  );
}
