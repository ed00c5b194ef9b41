// What the samples are searched, filtered and sorted by; the address holds it, the controls show it.

const COLUMN = 'in.';
const GALLERY_PARAMS = new Set(['q', 'sort', 'measure', 'went', 'changed', 'first', 'second']);
const WORST = `fall:${TOTAL}`;

class GalleryControls {
  constructor({ answers, columns, samples, num_samples_total: total }, measures) {
    this.answers = answers;
    this.columns = columns;
    this.samples = samples;
    this.total = total;
    this.measures = measures;
    this.compares = answers.length > 1;
    this.fields = new Map();
    this.counter = make('p', { class: 'count', role: 'status', 'aria-live': 'polite' });
    this.element = make(
      'div',
      { class: 'gallery-controls' },
      make(
        'div',
        { class: 'controls', role: 'group', 'aria-label': 'Choose samples' },
        this.searchField(),
        this.sortField(),
        this.pairFields(),
        this.changeFields(),
        columns.map((column) => this.columnField(column)),
      ),
      make('div', { class: 'controls buttons' }, this.counter, this.buttons()),
    );
  }

  // The view as the address has it; what is not to be had there falls back to the default.
  wanted() {
    const last = this.answers.length - 1;
    const place = (name, fallback) => {
      const told = param(name) === '' ? NaN : Number(param(name));
      return Number.isInteger(told) && told >= 0 && told <= last ? told : fallback;
    };
    const sort = param('sort', 'order');
    const known = this.sorts().some(([value]) => value === sort);
    const [went, measure] = [param('went'), param('measure', TOTAL)];
    return {
      query: param('q'),
      sort: known ? sort : 'order',
      onlyChanged: this.compares && param('changed') === '1',
      measure: this.measures.has(measure) ? measure : this.measures.all[0]?.id,
      direction:
        this.compares && this.measures.all.length > 0 && ['up', 'down', 'same'].includes(went) ? went : '',
      pair: [place('first', 0), place('second', last)],
      columns: this.columns
        .filter((column) => view.params.has(COLUMN + column))
        .map((column) => [column, param(COLUMN + column)]),
    };
  }

  sorts() {
    const of = (kind, words) =>
      this.measures.all.map(({ id }) => [`${kind}:${id}`, `${this.measures.label(id)}: ${words}`]);
    const scores = [
      ['order', 'as in the data'],
      ...of('high', 'highest first'),
      ...of('low', 'lowest first'),
    ];
    return this.compares
      ? [...scores, ...of('rise', 'largest rise first'), ...of('fall', 'largest fall first')]
      : scores;
  }

  field(name, label, control, fallback = '') {
    control.addEventListener('change', () =>
      setParams({ [name]: control.value === fallback ? '' : control.value }),
    );
    this.fields.set(name, control);
    return labelled(label, control);
  }

  searchField() {
    const input = make('input', {
      type: 'search',
      placeholder: 'prompt or answer',
      autocomplete: 'off',
    });
    let timer = 0;
    input.addEventListener('input', () => {
      clearTimeout(timer);
      timer = setTimeout(() => setParams({ q: input.value.trim() }), 120);
    });
    this.fields.set('q', input);
    return labelled('Search', input);
  }

  sortField() {
    return this.field('sort', 'Sort by', choice(this.sorts()), 'order');
  }

  pairFields() {
    if (this.answers.length < 3) return [];
    const options = this.answers.map((name, place) => [place, name]);
    return [
      this.field('first', 'Compare', choice(options), '0'),
      this.field('second', 'with', choice(options), String(this.answers.length - 1)),
    ];
  }

  changeFields() {
    if (!this.compares || this.measures.all.length === 0) return [];
    const measures = this.measures.all.map(({ id }) => [id, this.measures.label(id)]);
    const directions = [
      ['', 'any'],
      ['up', 'up'],
      ['down', 'down'],
      ['same', 'unchanged'],
    ];
    return [
      this.field('measure', 'Change of', choice(measures), TOTAL),
      this.field('went', 'Direction', choice(directions)),
    ];
  }

  // The value that a row lacks is shown as missing; "" of the address means all rows.
  columnField(column) {
    const values = [...new Set(this.samples.map((sample) => columnText(sample, column)))].sort();
    return this.field(
      COLUMN + column,
      column,
      choice([['', 'all'], ...values.filter(Boolean).map((value) => [value, value])]),
    );
  }

  buttons() {
    const toggle = (label, isOn, change) => {
      const button = make(
        'button',
        { type: 'button', 'aria-pressed': 'false', click: () => setParams(change(isOn(this.wanted()))) },
        label,
      );
      return { button, isOn };
    };
    this.toggles = this.compares
      ? [
          toggle(
            'Only changed',
            (wanted) => wanted.onlyChanged,
            (on) => ({ changed: on ? '' : '1' }),
          ),
          ...(this.measures.has(TOTAL)
            ? [
                toggle(
                  'Worst regressions first',
                  (wanted) => wanted.sort === WORST,
                  (on) => ({ sort: on ? '' : WORST }),
                ),
              ]
            : []),
        ]
      : [];
    const reset = make('button', { type: 'button', class: 'quiet', click: () => this.reset() }, 'Reset');
    return [...this.toggles.map(({ button }) => button), reset];
  }

  reset() {
    setParams(
      Object.fromEntries(
        [...GALLERY_PARAMS, ...this.columns.map((column) => COLUMN + column)].map((name) => [name, '']),
      ),
    );
  }

  sync({ query, sort, measure, direction: went, pair, columns, ...wanted }) {
    const chosen = new Map(columns);
    const values = { q: query, sort, measure, went, first: pair[0], second: pair[1] };
    for (const [name, control] of this.fields) {
      const value = name.startsWith(COLUMN) ? (chosen.get(name.slice(COLUMN.length)) ?? '') : values[name];
      // Not while it is typed into: the spaces at its ends are no part of the query.
      if (control.value.trim() !== String(value)) control.value = value;
    }
    for (const { button, isOn } of this.toggles)
      button.setAttribute('aria-pressed', String(isOn({ sort, ...wanted })));
  }

  count(number) {
    const held = this.samples.length;
    const beyond =
      this.total > held
        ? ` (this page holds ${formatCount(held)} of ${formatCount(this.total)} held-out rows)`
        : '';
    this.counter.textContent = `${formatCount(number)} of ${formatCount(held)} samples${beyond}`;
  }
}
