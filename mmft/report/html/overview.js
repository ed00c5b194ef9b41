// From a measure in a table to the samples in which it fell most.

function startOverview({ answers }, measures) {
  if (answers.length < 2 || !document.getElementById('samples')) return;
  for (const row of document.querySelectorAll('tr[data-measure]')) {
    const { measure } = row.dataset;
    if (!measures.has(measure)) continue;
    const name = row.cells[0];
    name.replaceChildren(
      make(
        'button',
        {
          type: 'button',
          class: 'link',
          title: 'Show the samples in which it fell most',
          click: () => {
            setParams({ sort: `fall:${measure}` });
            goTo('samples');
          },
        },
        ...name.childNodes,
      ),
    );
  }
}
