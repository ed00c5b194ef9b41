// Elements are made, never parsed: what models and data say reaches the page as text and nothing else.

const SVG = 'http://www.w3.org/2000/svg';
const MISSING = '–';

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

// Words of people and models, in whatever direction they are written.
function prose(tag, className, ...children) {
  return make(tag, { class: className, dir: 'auto' }, ...children);
}

// A name that breaks behind its slashes and underscores before it does elsewhere.
function breakable(name) {
  return name.split(/(?<=[/_])/).flatMap((part, place) => (place === 0 ? [part] : [make('wbr'), part]));
}

function labelled(label, control) {
  return make('label', {}, make('span', {}, label), control);
}

function choice(options, attributes = {}) {
  return make(
    'select',
    attributes,
    options.map(([value, label]) => make('option', { value }, label)),
  );
}

function isNumber(value) {
  return typeof value === 'number' && Number.isFinite(value);
}

function formatNumber(value) {
  if (!isNumber(value)) return MISSING;
  const size = Math.abs(value);
  let text;
  if (size !== 0 && (size < 0.001 || size >= 1e6)) text = value.toExponential(2);
  else if (Number.isInteger(value) && size >= 10) text = String(value);
  else text = value.toFixed(size >= 1000 ? 0 : 3);
  return typeset(text);
}

// More exact than a table of many: what is read off a curve.
function formatReading(value) {
  return isNumber(value) ? typeset(String(Number(value.toPrecision(6)))) : MISSING;
}

// A minus is no hyphen, and an exponent needs no plus.
function typeset(number) {
  return number.replace('e+', 'e').replaceAll('-', '−');
}

function formatChange(value) {
  if (!isNumber(value)) return MISSING;
  return value > 0 ? `+${formatNumber(value)}` : formatNumber(value);
}

function formatCount(count) {
  return count.toLocaleString('en-US');
}
