// A sample's picture, large, with what was said of it.

function openViewer(sample, place, names, withHeat) {
  const dialog = document.getElementById('viewer');
  const picture = make(
    'div',
    { class: 'stage' },
    make('img', { src: sample.pictures[place], alt: pictureName(sample, place) }),
  );
  const heat = place === 0 && hasPatches(sample);
  if (heat && withHeat) picture.append(heatOverlay(sample.heat));
  dialog.replaceChildren(
    make(
      'div',
      { class: 'viewer-inside' },
      make(
        'div',
        { class: 'viewer-head' },
        prose('h2', '', sample.key),
        make('button', { type: 'button', autofocus: true, click: () => dialog.close() }, 'Close'),
      ),
      picture,
      heat && withHeat ? heatLegend(sample.heat) : null,
      prose('p', 'prompt', sample.prompt ?? ''),
      make(
        'dl',
        {},
        sample.answers.map((answer, index) => [prose('dt', '', names[index]), prose('dd', '', answer.text)]),
      ),
    ),
  );
  dialog.showModal();
}

function pictureName(sample, place) {
  const number = sample.pictures.length > 1 ? ` ${place + 1}` : '';
  return `Picture${number} of ${sample.key}`;
}

function startViewer() {
  const dialog = document.getElementById('viewer');
  // What lies around the dialog belongs to its element; its content covers all of its inside.
  dialog.addEventListener('click', (event) => event.target === dialog && dialog.close());
}
