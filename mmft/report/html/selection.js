// Which samples are shown, and in what order: a pure function of the view.

// Lower-case text of a sample, in which the search looks; made once.
function searchText(sample) {
  sample.searched ??= [
    sample.key,
    sample.prompt,
    ...(sample.references ?? []),
    ...sample.answers.map((answer) => answer.text),
  ]
    .join('\n')
    .toLowerCase();
  return sample.searched;
}

function selectSamples(samples, wanted, measures) {
  const tests = [];
  if (wanted.query) tests.push((sample) => searchText(sample).includes(wanted.query.toLowerCase()));
  if (wanted.direction)
    tests.push(
      (sample) => direction(measures.change(sample, wanted.measure, wanted.pair)) === wanted.direction,
    );
  for (const [column, value] of wanted.columns) tests.push((sample) => columnText(sample, column) === value);
  if (wanted.onlyChanged)
    tests.push((sample) => sample.answers[wanted.pair[0]].text !== sample.answers[wanted.pair[1]].text);
  const selected = samples.filter((sample) => tests.every((test) => test(sample)));
  return wanted.sort === 'order' ? selected : sortSamples(selected, wanted, measures);
}

function columnText(sample, column) {
  const columns = sample.columns ?? {};
  return Object.hasOwn(columns, column) ? String(columns[column]) : MISSING;
}

// `sort` is "rise", "fall", "high" or "low" and the name of a measure; what could not be judged comes last.
function sortSamples(samples, { sort, pair }, measures) {
  const [kind, id] = splitSort(sort);
  const sign = kind === 'rise' || kind === 'high' ? -1 : 1;
  const number = (sample) =>
    kind === 'rise' || kind === 'fall'
      ? measures.change(sample, id, pair)
      : scoreOf(sample.answers[pair[1]], id);
  return samples
    .map((sample) => [sample, number(sample)])
    .sort(([, one], [, other]) => (one === null) - (other === null) || sign * (one - other))
    .map(([sample]) => sample);
}

function splitSort(sort) {
  const colon = sort.indexOf(':');
  return [sort.slice(0, colon), sort.slice(colon + 1)];
}
