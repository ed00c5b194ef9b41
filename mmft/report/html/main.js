// Starts every part of the page on its data.

function start() {
  for (const stand of document.querySelectorAll('.unscripted')) stand.remove();
  const data = JSON.parse(document.getElementById('data').textContent);
  const measures = new Measures(data);
  startState();
  startTheme();
  startCharts(data);
  startGallery(data, measures);
  startViewer();
  startSettings();
  startOverview(data, measures);
  startNavigation();
}

start();
