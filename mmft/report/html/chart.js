// One chart: an SVG that is drawn anew when its width or the smoothing changes, and a crosshair over it.

const PLOT = { height: 220, top: 26, right: 14, bottom: 36, letter: 6.2 };

class Chart {
  constructor(chart, place, series) {
    this.chart = chart;
    this.place = place;
    this.series = series;
    this.weight = 0;
    this.hidden = new Set();
    this.cursor = null;
    this.steps = [];
    this.build();
  }

  build() {
    const { title, description } = this.chart;
    const describedBy = `chart-${this.place}-text`;
    this.svg = makeSvg('svg', {
      role: 'slider',
      tabindex: 0,
      'aria-label': `${title}: read values with the arrow keys`,
      'aria-describedby': describedBy,
      'aria-valuemin': 0,
      'aria-valuemax': 0,
      'aria-valuenow': 0,
      pointermove: (event) => this.point(event),
      pointerleave: () => document.activeElement !== this.svg && this.moveTo(null),
      keydown: (event) => this.steer(event),
      focus: () => this.moveTo(this.cursor ?? this.steps.length - 1),
      blur: () => this.moveTo(null),
    });
    this.readout = make('div', { class: 'readout', hidden: true });
    this.plot = make('div', { class: 'plot' }, this.svg, this.readout);
    this.table = make('div', {
      class: 'scroll chart-table',
      hidden: true,
      tabindex: 0,
      role: 'region',
      'aria-label': `${title} as a table`,
    });
    this.toggle = make(
      'button',
      { type: 'button', class: 'quiet', 'aria-pressed': 'false', click: () => this.toggleTable() },
      'Table',
    );
    this.legend = make('div', { class: 'legend' });
    this.element = make(
      'figure',
      { class: 'chart' },
      make(
        'figcaption',
        {},
        make('div', { class: 'chart-head' }, prose('h4', '', title), this.toggle),
        prose('p', 'description', description ?? ''),
        this.legend,
      ),
      this.plot,
      this.table,
    );
    this.element.querySelector('.description').id = describedBy;
    this.watcher = new ResizeObserver(() => this.draw());
    this.watcher.observe(this.plot);
  }

  get visible() {
    return this.series.filter((each) => !this.hidden.has(each.index));
  }

  update(weight, hidden) {
    this.weight = weight;
    this.hidden = hidden;
    this.draw();
  }

  draw() {
    this.width = this.plot.clientWidth;
    if (this.width === 0) return;
    this.steps = [...new Set(this.visible.flatMap((each) => each.x))].sort((one, other) => one - other);
    for (const each of this.visible) {
      each.shown = each.smooth && this.weight > 0 ? smoothed(each.y, this.weight) : each.y;
    }
    const { height } = PLOT;
    this.svg.setAttribute('viewBox', `0 0 ${this.width} ${height}`);
    this.svg.setAttribute('height', height);
    this.svg.setAttribute('aria-valuemax', Math.max(0, this.steps.length - 1));
    this.layOut();
    this.cross = makeSvg('g', { class: 'cross' });
    this.svg.replaceChildren(
      ...this.axes(),
      ...this.visible.flatMap((each) => this.lines(each)),
      ...this.references(),
      this.cross,
    );
    this.moveTo(this.cursor);
  }

  layOut() {
    const references = (this.chart.references ?? []).map((reference) => reference.y);
    let [low, high] = axisRange([...this.visible.flatMap((each) => each.y), ...references]);
    const step = niceStep(high - low, 4);
    const room = (high - low) * 0.04;
    [low, high] = [low - room, high + room];
    const [first, last] = axisRange(this.steps);
    this.yTicks = ticksWithin(low, high, step).map((value) => [value, tickLabel(value, step)]);
    const left = 12 + PLOT.letter * Math.max(1, ...this.yTicks.map(([, label]) => label.length));
    const inner = this.width - left - PLOT.right;
    const xStep = Math.max(
      niceStep(last - first, Math.max(2, Math.floor(inner / 70))),
      this.steps.every(Number.isInteger) ? 1 : 0,
    );
    this.xTicks = ticksWithin(first, last, xStep).map((value) => [value, tickLabel(value, xStep)]);
    this.left = left;
    this.x = (value) => left + ((value - first) / (last - first)) * inner;
    this.y = (value) =>
      PLOT.height - PLOT.bottom - ((value - low) / (high - low)) * (PLOT.height - PLOT.top - PLOT.bottom);
  }

  axes() {
    const right = this.width - PLOT.right;
    const floor = PLOT.height - PLOT.bottom;
    const text = (x, y, anchor, label, className = 'tick') =>
      makeSvg('text', { x, y, 'text-anchor': anchor, class: className }, label);
    return [
      text(0, 12, 'start', this.chart.y_label ?? '', 'axis-label'),
      text(right, PLOT.height - 4, 'end', this.chart.x_label ?? '', 'axis-label'),
      ...this.yTicks.flatMap(([value, label]) => [
        makeSvg('line', { class: 'grid', x1: this.left, x2: right, y1: this.y(value), y2: this.y(value) }),
        text(this.left - 6, this.y(value) + 4, 'end', label),
      ]),
      makeSvg('line', { class: 'axis', x1: this.left, x2: right, y1: floor, y2: floor }),
      ...this.xTicks.map(([value, label]) => text(this.x(value), floor + 15, 'middle', label)),
    ];
  }

  lines(series) {
    const ink = `ink-${series.ink}${series.dashed ? ' dashed' : ''}`;
    const drawn = [];
    if (series.shown !== series.y)
      drawn.push(makeSvg('path', { class: `raw ${ink}`, d: this.path(series.x, series.y) }));
    drawn.push(makeSvg('path', { class: `line ${ink}`, d: this.path(series.x, series.shown) }));
    return drawn;
  }

  // A number without neighbours is a line of no length, which round ends make a point.
  path(xs, ys) {
    let pen = 'M';
    let path = '';
    ys.forEach((value, place) => {
      if (!isNumber(value)) {
        pen = 'M';
        return;
      }
      const point = `${this.x(xs[place]).toFixed(1)},${this.y(value).toFixed(1)}`;
      path += pen === 'M' && !isNumber(ys[place + 1]) ? `M${point}h0` : pen + point;
      pen = 'L';
    });
    return path;
  }

  references() {
    const taken = [];
    const known = (this.chart.references ?? []).filter((reference) => isNumber(reference.y));
    return known.flatMap((reference) => {
      const y = this.y(reference.y);
      const text = `${reference.label} ${formatReading(reference.y)}`;
      const label = this.labelPlace(y, text.length * PLOT.letter, taken);
      taken.push(label);
      return [
        makeSvg('line', { class: 'reference', x1: this.left, x2: this.width - PLOT.right, y1: y, y2: y }),
        makeSvg(
          'text',
          {
            class: 'reference-label',
            x: label[label.anchor],
            y: label.bottom - 3,
            'text-anchor': label.anchor,
          },
          text,
        ),
      ];
    });
  }

  // Above or below its line, left or right: where it hides the fewest points and no other label.
  labelPlace(y, width, taken) {
    const end = this.width - PLOT.right;
    const start = this.left + 4;
    const sides = [
      { anchor: 'end', start: end - width, end },
      { anchor: 'start', start, end: start + width },
    ];
    const boxes = sides.flatMap((side) =>
      [y - 2, y + 16].map((bottom) => ({ ...side, bottom, top: bottom - 14 })),
    );
    const overlaps = (box, other) =>
      box.start < other.end && other.start < box.end && box.top < other.bottom && other.top < box.bottom;
    const points = this.visible.flatMap((each) =>
      each.x.flatMap((x, place) =>
        isNumber(each.y[place]) ? { x: this.x(x), y: this.y(each.y[place]) } : [],
      ),
    );
    const hides = (box) =>
      points.filter(({ x, y: at }) => box.start <= x && x <= box.end && box.top <= at && at <= box.bottom)
        .length +
      (taken.some((other) => overlaps(box, other)) || box.bottom > PLOT.height - PLOT.bottom ? Infinity : 0);
    const costs = boxes.map(hides);
    return boxes[costs.indexOf(Math.min(...costs))];
  }

  point(event) {
    if (this.steps.length === 0) return;
    const box = this.svg.getBoundingClientRect();
    const places = this.steps.map(this.x);
    this.moveTo(nearestIndex(places, ((event.clientX - box.left) * this.width) / box.width));
  }

  steer(event) {
    const last = this.steps.length - 1;
    const at = this.cursor ?? last;
    const targets = {
      ArrowLeft: at - 1,
      ArrowDown: at - 1,
      ArrowRight: at + 1,
      ArrowUp: at + 1,
      PageDown: at - 10,
      PageUp: at + 10,
      Home: 0,
      End: last,
    };
    if (event.key === 'Escape') this.moveTo(null);
    if (!(event.key in targets)) return;
    event.preventDefault();
    this.moveTo(Math.max(0, Math.min(last, targets[event.key])));
  }

  // Shows the crosshair at a step, or takes it away.
  moveTo(cursor) {
    this.cursor = this.steps[cursor] === undefined ? null : cursor;
    this.readout.hidden = this.cursor === null;
    this.cross.replaceChildren();
    if (this.cursor === null) return;
    const step = this.steps[this.cursor];
    const readings = this.visible.map((each) => readSeries(each, step)).filter(Boolean);
    const at = this.x(step);
    this.cross.append(
      makeSvg('line', { x1: at, x2: at, y1: PLOT.top, y2: PLOT.height - PLOT.bottom }),
      ...readings
        .filter(({ shown }) => isNumber(shown))
        .map(({ series, x, shown }) =>
          makeSvg('circle', { class: `ink-${series.ink}`, cx: this.x(x), cy: this.y(shown), r: 3.5 }),
        ),
    );
    const heading = `${this.chart.x_label || 'x'} ${tickLabel(step, Number.isInteger(step) ? 1 : 1e-3)}`;
    this.readout.replaceChildren(
      make('b', {}, heading),
      ...readings.map((reading) => readingRow(reading, step)),
    );
    const half = this.readout.offsetWidth / 2;
    this.readout.style.left = `${Math.max(half, Math.min(this.width - half, at))}px`;
    this.svg.setAttribute('aria-valuenow', this.cursor);
    this.svg.setAttribute(
      'aria-valuetext',
      [heading, ...readings.map((reading) => readingText(reading, step))].join('; '),
    );
  }

  toggleTable() {
    const shown = this.table.hidden;
    if (shown && !this.table.firstChild) this.table.append(seriesTable(this.chart, this.series));
    this.table.hidden = !shown;
    this.plot.hidden = shown;
    this.toggle.setAttribute('aria-pressed', String(shown));
  }
}
