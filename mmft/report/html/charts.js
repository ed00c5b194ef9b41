// The section of curves: charts under the headings of their groups, one smoothing for all of them.

const DEFAULT_SMOOTHING = 0.8;
const NUM_INKS = 6;

function startCharts({ charts, runs }) {
  const section = document.getElementById('curves');
  if (!section) return;
  const made = charts.map((chart, place) => new Chart(chart, place, seriesOf(chart, runs)));
  for (const chart of made) addLegend(chart, runs);
  section.append(chartControls(charts, runs), ...groupsOf(made));
  onParams(
    (name) => ['smooth', 'off', 'hide'].includes(name),
    () => updateCharts(made),
  );
  updateCharts(made);
}

// One run: a colour for each series. Several: a colour for each run, the same in all charts.
function seriesOf(chart, runs) {
  const seen = new Map();
  const alone = new Set(chart.series.map((each) => each.run)).size === chart.series.length;
  return chart.series.map((each, index) => {
    const among = seen.get(each.run) ?? 0;
    seen.set(each.run, among + 1);
    const several = runs.length > 1;
    const order = each.x.map((_, place) => place).sort((one, other) => each.x[one] - each.x[other]);
    const colour = several ? each.run : index;
    return {
      index,
      run: each.run,
      smooth: each.smooth,
      x: order.map((place) => each.x[place]),
      y: order.map((place) => each.y[place]),
      label: several ? (alone ? runs[each.run] : `${runs[each.run]} ${each.name}`) : each.name,
      ink: colour % NUM_INKS,
      dashed: several ? among > 0 || colour >= NUM_INKS : colour >= NUM_INKS,
    };
  });
}

function groupsOf(made) {
  const groups = new Map();
  for (const chart of made) {
    const name = chart.chart.group ?? '';
    groups.set(name, [...(groups.get(name) ?? []), chart.element]);
  }
  return [...groups].map(([name, elements]) =>
    make(
      'div',
      { class: 'chart-group' },
      name ? prose('h3', '', name) : null,
      make('div', { class: 'charts' }, elements),
    ),
  );
}

// Names that a list in the address holds, and the list without or with one of them.
function listed(name) {
  return new Set(param(name).split(',').filter(Boolean));
}

function switchListed(name, key) {
  const set = listed(name);
  if (!set.delete(key)) set.add(key);
  setParams({ [name]: [...set].join(',') });
}

function updateCharts(made) {
  const weight = smoothing();
  const [runs, off] = [listed('hide'), listed('off')];
  for (const chart of made) {
    const hides = (series) => runs.has(String(series.run)) || off.has(`${chart.place}.${series.index}`);
    chart.update(weight, new Set(chart.series.filter(hides).map((series) => series.index)));
    for (const button of chart.legend.children) {
      button.setAttribute('aria-pressed', String(!off.has(`${chart.place}.${button.dataset.series}`)));
    }
  }
}

function smoothing() {
  const weight = Number(param('smooth', DEFAULT_SMOOTHING));
  return weight >= 0 && weight < 1 ? weight : DEFAULT_SMOOTHING;
}

function swatchButton(label, ink, dashed, attributes) {
  return make(
    'button',
    { type: 'button', class: 'key', 'aria-pressed': 'true', ...attributes },
    make('i', { class: `swatch ink-${ink}${dashed ? ' dashed' : ''}` }),
    make('span', { dir: 'auto' }, label),
  );
}

// Where each run has one series, the legend of runs above the charts is enough.
function addLegend(chart, runs) {
  if (
    chart.series.length < 2 ||
    (runs.length > 1 && chart.series.every((series) => runs.includes(series.label)))
  )
    return;
  chart.legend.append(
    ...chart.series.map((series) =>
      swatchButton(series.label, series.ink, series.dashed, {
        'data-series': series.index,
        click: () => switchListed('off', `${chart.place}.${series.index}`),
      }),
    ),
  );
}

function chartControls(charts, runs) {
  const slider = make('input', { type: 'range', min: 0, max: 0.98, step: 0.02, 'aria-label': 'Smoothing' });
  const value = make('output', {});
  const show = () => {
    slider.value = smoothing();
    value.textContent = smoothing().toFixed(2);
  };
  slider.addEventListener('input', () =>
    setParams({ smooth: Number(slider.value) === DEFAULT_SMOOTHING ? '' : slider.value }),
  );
  onParams((name) => name === 'smooth', show);
  show();
  return make(
    'div',
    { class: 'controls' },
    make('label', {}, make('span', {}, 'Smoothing'), make('span', { class: 'slider' }, slider, value)),
    runs.length > 1 ? runLegend(runs) : null,
  );
}

function runLegend(runs) {
  const buttons = runs.map((name, run) =>
    swatchButton(name, run % NUM_INKS, run >= NUM_INKS, { click: () => switchListed('hide', String(run)) }),
  );
  const show = () =>
    buttons.forEach((button, run) =>
      button.setAttribute('aria-pressed', String(!listed('hide').has(String(run)))),
    );
  onParams((name) => name === 'hide', show);
  show();
  return make('div', { class: 'legend', role: 'group', 'aria-label': 'Runs' }, buttons);
}
