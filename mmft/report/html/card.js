// One sample: picture, question, answers with their differences, scores, and on request its tokens.

const MARKS = { up: '▲', down: '▼', same: '=', unknown: '' };

class CardMaker {
  constructor({ answers, runs }, measures, tokenView) {
    this.names = answers;
    this.measures = measures;
    this.tokenView = tokenView;
    this.open = new Set();
    onParams(
      (name) => name === 'tokens',
      () => this.open.forEach((show) => show()),
    );
    // Answers of several runs have the colours of their runs; before and after, and the sides of a pair,
    // are grey and accent.
    const ofRuns = runs.length > 1 && answers.every((name, place) => name === runs[place]);
    this.inks = answers.map((_, place) =>
      ofRuns ? `ink-${place % NUM_INKS}` : place === answers.length - 1 ? 'ink-last' : 'ink-first',
    );
  }

  make(sample, pair) {
    const media = this.media(sample);
    return make(
      'article',
      { class: `card${media ? '' : ' without-picture'}` },
      media,
      make(
        'div',
        { class: 'card-body' },
        this.head(sample, pair),
        this.question(sample),
        this.answers(sample),
        this.parts(sample, pair),
        this.references(sample),
        this.tokens(sample),
      ),
    );
  }

  head(sample, pair) {
    const name = prose('h3', '', String(sample.key ?? sample.id));
    return make('header', {}, name, this.total(sample, pair));
  }

  question(sample) {
    const columns = Object.entries(sample.columns ?? {});
    return [
      sample.prompt ? prose('p', 'prompt', sample.prompt) : null,
      columns.map(([name, value]) => prose('span', 'chip', make('i', {}, name), ` ${value}`)),
    ];
  }

  total(sample, pair) {
    if (!this.measures.has(TOTAL)) return null;
    if (this.names.length === 1)
      return make('span', { class: 'total' }, formatNumber(sample.answers[0].reward));
    const [before, after] = pair.map((place) => formatNumber(scoreOf(sample.answers[place], TOTAL)));
    const change = this.measures.change(sample, TOTAL, pair);
    const tone = { up: 'good', down: 'bad' }[direction(change)] ?? 'neutral';
    return make(
      'span',
      { class: 'total', title: 'total reward' },
      `${before} → ${after} `,
      make('b', { class: `tone-${tone}` }, changeText(change)),
    );
  }

  answers(sample) {
    return make(
      'div',
      { class: 'answers' },
      sample.answers.map((answer, place) =>
        make(
          'div',
          { class: 'answer' },
          make('span', { class: `answer-name ${this.inks[place]}`, dir: 'auto' }, this.names[place]),
          prose(
            'p',
            'answer-text',
            ...this.text(sample, answer, place),
            answer.ended === false
              ? make('span', { class: 'cut', title: 'Cut at the longest allowed length' }, 'cut')
              : null,
          ),
        ),
      ),
    );
  }

  // Differences stand between the first answer and the last.
  text(sample, answer, place) {
    const last = this.names.length - 1;
    const own = { 0: '-', [last]: '+' }[place];
    if (answer.text === '') return [make('span', { class: 'nothing' }, '(empty)')];
    if (!sample.diff?.length || last === 0 || own === undefined) return [answer.text];
    return sample.diff
      .filter(([kind]) => kind === '=' || kind === own)
      .map(([kind, words]) => (kind === '=' ? words : make(kind === '-' ? 'del' : 'ins', {}, words)));
  }

  parts(sample, pair) {
    const rows = this.measures.parts.filter(({ id }) =>
      sample.answers.some((answer) => scoreOf(answer, id) !== null),
    );
    if (rows.length === 0) return null;
    return make(
      'table',
      { class: 'parts' },
      make(
        'tbody',
        {},
        rows.map(({ id, label }) => {
          const scores = sample.answers.map((answer) => scoreOf(answer, id));
          return make(
            'tr',
            {},
            make('th', { scope: 'row', dir: 'auto' }, breakable(label ?? id)),
            make('td', { class: 'track-cell' }, this.track(scores, this.measures.ranges.get(id))),
            make('td', { class: 'scores' }, scores.map(formatNumber).join(scores.length > 2 ? ' · ' : ' → ')),
            scores.length > 1
              ? make('td', { class: 'part-change' }, changeText(this.measures.change(sample, id, pair)))
              : null,
          );
        }),
      ),
    );
  }

  // Each answer's score as a dot between the lowest and the highest score of all samples.
  track(scores, [low, high]) {
    const place = (score) => 5 + (90 * (score - low)) / (high - low);
    const known = scores.filter(isNumber).map(place);
    return makeSvg(
      'svg',
      { class: 'track', viewBox: '0 0 100 12', 'aria-hidden': 'true' },
      makeSvg('line', { class: 'track-line', x1: 5, x2: 95, y1: 6, y2: 6 }),
      known.length > 1
        ? makeSvg('line', {
            class: 'track-span',
            x1: Math.min(...known),
            x2: Math.max(...known),
            y1: 6,
            y2: 6,
          })
        : null,
      scores.map((score, index) =>
        isNumber(score)
          ? makeSvg('circle', { class: this.inks[index], cx: place(score), cy: 6, r: 3.6 })
          : null,
      ),
    );
  }

  references(sample) {
    const references = sample.references ?? [];
    if (references.length === 0) return null;
    return make(
      'details',
      {},
      make('summary', {}, references.length === 1 ? '1 reference' : `${references.length} references`),
      make(
        'ul',
        { class: 'references' },
        references.map((text) => prose('li', '', text)),
      ),
    );
  }

  tokens(sample) {
    if (!sample.answers.some((answer) => answer.tokens?.length) && !sample.heat?.tokens?.length) return null;
    const content = make('div', { class: 'tokens' });
    const show = () => {
      // What is chosen is made anew; whoever chose by keyboard goes on from there.
      const held = content.contains(document.activeElement);
      content.replaceChildren(...this.tokenView.show(sample));
      if (held) content.querySelector('select')?.focus();
    };
    const details = make('details', {}, make('summary', {}, 'Tokens'), content);
    details.addEventListener('toggle', () => {
      if (details.open) show();
      else content.replaceChildren();
      this.open[details.open ? 'add' : 'delete'](show);
    });
    return details;
  }

  media(sample) {
    const pictures = sample.pictures ?? [];
    if (pictures.length === 0) return null;
    const heat = hasPatches(sample) ? make('div', { class: 'heat-controls' }) : null;
    const shows = () => heat?.firstChild?.getAttribute('aria-pressed') === 'true';
    const thumbs = pictures.map((source, place) =>
      make(
        'button',
        {
          type: 'button',
          class: 'thumb',
          'aria-label': `Enlarge ${pictureName(sample, place)}`,
          click: () => openViewer(sample, place, this.names, shows()),
        },
        make('img', { src: source, alt: '' }),
      ),
    );
    heat?.append(
      make(
        'button',
        {
          type: 'button',
          class: 'quiet',
          'aria-pressed': 'false',
          click: ({ currentTarget }) => {
            const on = currentTarget.getAttribute('aria-pressed') !== 'true';
            currentTarget.setAttribute('aria-pressed', String(on));
            if (on) {
              thumbs[0].append(heatOverlay(sample.heat));
              heat.append(heatLegend(sample.heat));
            } else {
              thumbs[0].querySelector('.heat').remove();
              heat.querySelector('.heat-legend').remove();
            }
          },
        },
        'Heat map',
      ),
    );
    return make('div', { class: 'media' }, thumbs, heat);
  }
}

function changeText(change) {
  return change === null
    ? MISSING
    : `${MARKS[direction(change)]} ${direction(change) === 'same' ? '0' : formatChange(change)}`;
}
