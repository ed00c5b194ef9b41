// The view, kept in the part of the address behind "#", so that a copied address shows the same view.

const view = { section: '', params: new Map() };
const listeners = [];

function readAddress() {
  const [first, ...rest] = location.hash.slice(1).split('&');
  const isSection = !first.includes('=');
  view.section = isSection ? first : '';
  view.params = new Map(new URLSearchParams((isSection ? rest : [first, ...rest]).join('&')));
}

// Browsers refuse to be told of every step of a slider, so the last of a quick series is written.
let writing = 0;

function writeAddress() {
  clearTimeout(writing);
  writing = setTimeout(() => {
    const params = new URLSearchParams([...view.params]).toString();
    history.replaceState(null, '', `#${view.section}${params && `&${params}`}`);
  }, 100);
}

function param(name, fallback = '') {
  return view.params.get(name) ?? fallback;
}

// `changes` maps names to values; an empty value is the default and leaves the address.
function setParams(changes) {
  for (const [name, value] of Object.entries(changes)) {
    if (value === '' || value === null) view.params.delete(name);
    else view.params.set(name, String(value));
  }
  writeAddress();
  notify(Object.keys(changes));
}

function notify(names) {
  for (const { concerns, listener } of listeners) if (names.some(concerns)) listener();
}

function onParams(concerns, listener) {
  listeners.push({ concerns, listener });
}

function startState() {
  readAddress();
  addEventListener('hashchange', () => {
    const before = view.params;
    readAddress();
    const names = [...new Set([...before.keys(), ...view.params.keys()])];
    notify(names.filter((name) => before.get(name) !== view.params.get(name)));
  });
}
