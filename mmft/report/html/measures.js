// The numbers of samples: what an answer scored, and how two answers of one sample differ.

const TOTAL = 'reward';

class Measures {
  constructor({ measures, samples, answers }) {
    this.samples = samples;
    this.names = answers;
    const known = new Map([
      [TOTAL, { id: TOTAL, label: 'total reward' }],
      ...measures.map((each) => [each.id, each]),
    ]);
    const covered = new Set([...known.keys()].flatMap((id) => [id, bare(id)]));
    for (const name of samples.flatMap((sample) =>
      sample.answers.flatMap((answer) => Object.keys(answer.rewards ?? {})),
    )) {
      if (covered.has(name)) continue;
      covered.add(name);
      known.set(name, { id: name, label: name });
    }
    // A measure of the whole corpus says nothing of a sample.
    this.all = [...known.values()].filter(({ id }) => this.scores(id).length > 0);
    this.parts = this.all.filter(({ id }) => id !== TOTAL);
    this.ranges = new Map(this.all.map(({ id }) => [id, axisRange(this.scores(id))]));
  }

  has(id) {
    return this.ranges.has(id);
  }

  label(id) {
    return this.all.find((each) => each.id === id).label ?? id;
  }

  scores(id) {
    return this.samples
      .flatMap((sample) => sample.answers.map((answer) => scoreOf(answer, id)))
      .filter(isNumber);
  }

  // The second answer's score less that of the first; null where either could not be judged.
  change(sample, id, [first, second]) {
    const [before, after] = [first, second].map((place) => scoreOf(sample.answers[place], id));
    return isNumber(before) && isNumber(after) ? after - before : null;
  }
}

function bare(id) {
  return id.replace(/^rewards\//, '');
}

function scoreOf(answer, id) {
  if (id === TOTAL) return isNumber(answer.reward) ? answer.reward : null;
  const rewards = answer.rewards ?? {};
  const value = Object.hasOwn(rewards, id) ? rewards[id] : rewards[bare(id)];
  return isNumber(value) ? value : null;
}

// Scores are sums of single precision: what is closer than this is the same.
const SAME = 1e-5;

function direction(change) {
  if (change === null) return 'unknown';
  return Math.abs(change) < SAME ? 'same' : change > 0 ? 'up' : 'down';
}
