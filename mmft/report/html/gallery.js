// The section of samples: controls, the count, and as many cards as were scrolled to.

const CARDS_AT_ONCE = 24;

class Gallery {
  constructor(data, measures) {
    this.data = data;
    this.measures = measures;
    this.cards = new CardMaker(data, this.measures, new TokenView(data.samples, data.answers));
    this.made = new Map();
    this.controls = new GalleryControls(data, this.measures);
    this.list = make('div', { class: 'cards' });
    this.more = make('button', { type: 'button', class: 'more', click: () => this.showMore() });
    document.getElementById('samples').append(this.controls.element, this.list, this.more);
    this.observer = new IntersectionObserver((entries) => entries.at(-1).isIntersecting && this.showMore(), {
      rootMargin: '400px',
    });
    onParams(
      (name) => GALLERY_PARAMS.has(name) || name.startsWith(COLUMN),
      () => this.show(),
    );
    this.show();
  }

  show() {
    const wanted = this.controls.wanted();
    this.controls.sync(wanted);
    this.pair = wanted.pair;
    this.selected = selectSamples(this.data.samples, wanted, this.measures);
    this.controls.count(this.selected.length);
    this.shown = 0;
    this.list.replaceChildren();
    this.showMore();
  }

  showMore() {
    const next = this.selected.slice(this.shown, this.shown + CARDS_AT_ONCE);
    this.list.append(...next.map((sample) => this.card(sample)));
    this.shown += next.length;
    const left = this.selected.length - this.shown;
    this.more.hidden = left === 0;
    this.more.textContent = `Show ${formatCount(Math.min(left, CARDS_AT_ONCE))} more of ${formatCount(left)}`;
    // Asked anew, for it tells only of changes: the end of the list may be in view as it was before.
    this.observer.unobserve(this.more);
    this.observer.observe(this.more);
  }

  // A card is kept, with what was opened in it, for as long as it compares the same two answers.
  card(sample) {
    const key = this.pair.join();
    const kept = this.made.get(sample);
    if (kept?.key === key) return kept.card;
    const card = this.cards.make(sample, this.pair);
    this.made.set(sample, { key, card });
    return card;
  }
}

function startGallery(data, measures) {
  if (document.getElementById('samples')) new Gallery(data, measures);
}
