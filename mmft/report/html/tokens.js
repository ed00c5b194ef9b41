// The token view: every token of an answer as a chip, coloured by one of its numbers, readable one by one.

const TOKEN_KINDS = {
  logps: { label: 'log-probability', diverging: false },
  values: { label: 'value', diverging: true },
  advantages: { label: 'advantage', diverging: true },
  importance: { label: 'importance', diverging: false },
};
const STRONGEST = 60;

class TokenView {
  constructor(samples, names) {
    this.samples = samples;
    this.names = names;
    this.limits = {};
  }

  // What this sample has numbers of.
  kinds(sample) {
    const has = (kind) =>
      kind === 'importance'
        ? (sample.heat?.tokens ?? []).length > 0
        : sample.answers.some((answer) => (answer[kind] ?? []).some(isNumber));
    return Object.keys(TOKEN_KINDS).filter(has);
  }

  // Where colours end: beyond nearly all numbers of all samples, so that colours compare between them.
  limit(kind, sample) {
    if (kind === 'importance') return Math.max(...sample.heat.tokens.map(([, weight]) => weight), 0);
    this.limits[kind] ??= quantile(
      this.samples.flatMap((each) =>
        each.answers.flatMap((answer) => (answer[kind] ?? []).filter(isNumber).map(Math.abs)),
      ),
      0.98,
    );
    return this.limits[kind];
  }

  // Elements of one sample; they follow what is chosen here or in another sample.
  show(sample) {
    const kinds = this.kinds(sample);
    const chosen = kinds.includes(param('tokens')) ? param('tokens') : kinds[0];
    const select = choice(
      kinds.map((kind) => [kind, TOKEN_KINDS[kind].label]),
      { change: () => setParams({ tokens: select.value }) },
    );
    select.value = chosen;
    const rows =
      chosen === 'importance'
        ? [[`what the ${sample.heat.of ?? 'answer'} depends on`, importanceTokens(sample)]]
        : sample.answers.map((answer, place) => [this.names[place], answerTokens(answer)]);
    const shown = rows.filter(([, tokens]) => tokens.length > 0);
    if (!chosen) return shown.map(([name, tokens]) => tokenRow(name, tokens, '', 0));
    const limit = this.limit(chosen, sample);
    return [
      make('div', { class: 'token-head' }, labelled('Colour by', select), tokenLegend(chosen, limit)),
      ...shown.map(([name, tokens]) => tokenRow(name, tokens, chosen, limit)),
    ];
  }
}

function answerTokens(answer) {
  return (answer.tokens ?? []).map((text, place) => ({
    text,
    logps: answer.logps?.[place],
    values: answer.values?.[place],
    advantages: answer.advantages?.[place],
  }));
}

function importanceTokens(sample) {
  return sample.heat.tokens.map(([text, importance]) => ({ text, importance }));
}

function tokenNumbers(token) {
  return Object.entries(TOKEN_KINDS)
    .filter(([kind]) => isNumber(token[kind]))
    .map(
      ([kind, { label }]) =>
        `${label} ${formatNumber(token[kind])}${kind === 'logps' ? ` (p ${formatNumber(Math.exp(token[kind]))})` : ''}`,
    );
}

function tokenColour(kind, value, limit) {
  if (!isNumber(value) || limit === 0) return '';
  const share = Math.min(1, Math.abs(value) / limit);
  const ink = !TOKEN_KINDS[kind].diverging ? 'sequential' : value > 0 ? 'positive' : 'negative';
  return `color-mix(in srgb, var(--${ink}) ${Math.round(share * STRONGEST)}%, transparent)`;
}

function visibleToken(text) {
  return text === '' ? '∅' : text.replace(/\n/g, '⏎');
}

// One stop of the Tab key for a row; arrows go from token to token.
function tokenRow(name, tokens, kind, limit) {
  const readout = make('p', { class: 'token-readout' });
  const tell = (place) => {
    const numbers = tokenNumbers(tokens[place]);
    readout.replaceChildren(
      make('b', { dir: 'auto' }, `“${visibleToken(tokens[place].text)}”`),
      ` ${numbers.join(', ') || 'no numbers'}`,
    );
  };
  const chips = tokens.map((token, place) => {
    const chip = make(
      'span',
      {
        role: 'listitem',
        class: 'token',
        dir: 'auto',
        tabindex: place === 0 ? 0 : -1,
        'aria-label': [visibleToken(token.text), ...tokenNumbers(token)].join(', '),
        pointerenter: () => tell(place),
        focus: () => tell(place),
      },
      visibleToken(token.text),
    );
    chip.style.background = kind ? tokenColour(kind, token[kind], limit) : '';
    return chip;
  });
  const list = make(
    'div',
    {
      role: 'list',
      class: 'token-list',
      'aria-label': `Tokens: ${name}`,
      keydown: (event) => moveFocus(event, chips),
    },
    chips,
  );
  return make('div', { class: 'token-row' }, prose('span', 'answer-name', name), list, readout);
}

function moveFocus(event, chips) {
  const at = chips.indexOf(event.target);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: chips.length - 1 }[event.key];
  if (at < 0 || next === undefined) return;
  event.preventDefault();
  const chip = chips[Math.max(0, Math.min(chips.length - 1, next))];
  chips[at].tabIndex = -1;
  chip.tabIndex = 0;
  chip.focus();
}

function tokenLegend(kind, limit) {
  const { diverging } = TOKEN_KINDS[kind];
  const sign = kind === 'logps' ? '−' : '';
  const end = formatNumber(limit);
  return make(
    'span',
    {
      class: 'scale',
      role: 'img',
      'aria-label': `Colours from ${diverging ? `−${end} over 0` : 0} to ${sign}${end} and beyond`,
    },
    diverging ? `−${end}` : '0',
    make('i', { class: `ramp ${diverging ? 'diverging' : 'sequential'}` }),
    `${diverging ? '+' : sign}${end}`,
  );
}
