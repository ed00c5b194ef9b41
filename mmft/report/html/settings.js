// Finding a setting in the configuration.

function startSettings() {
  const table = document.getElementById('config');
  if (!table) return;
  const search = document.getElementById('config-search');
  const differs = document.getElementById('config-differs');
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));
  const show = () => {
    const wanted = search.value.trim().toLowerCase();
    let count = 0;
    for (const { row, text } of rows) {
      row.hidden = !text.includes(wanted) || (differs?.checked && !row.classList.contains('differs'));
      count += !row.hidden;
    }
    document.getElementById('config-count').textContent = `${count} of ${rows.length} settings`;
  };
  search.addEventListener('input', show);
  differs?.addEventListener('change', show);
  document.getElementById('config-controls').hidden = false;
  show();
}
