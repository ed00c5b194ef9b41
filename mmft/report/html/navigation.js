// Links within the page, which must not overwrite the view that stands in the address beside them.

function startNavigation() {
  document.addEventListener('click', (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (!link) return;
    event.preventDefault();
    goTo(link.getAttribute('href').slice(1));
  });
  let waiting = false;
  addEventListener(
    'scroll',
    () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        markSection();
      });
    },
    { passive: true },
  );
  const goThere = () => document.getElementById(view.section)?.scrollIntoView();
  addEventListener('hashchange', goThere);
  goThere();
  markSection();
}

function goTo(id) {
  const target = document.getElementById(id);
  view.section = id;
  writeAddress();
  target.scrollIntoView();
  target.focus({ preventScroll: true });
}

function markSection() {
  const links = [...document.querySelectorAll('nav.bar a')];
  const atEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 2 && scrollY > 0;
  const reached = links.filter((link) => {
    const section = document.querySelector(link.getAttribute('href'));
    return section.getBoundingClientRect().top <= innerHeight / 3;
  });
  const current = (atEnd ? links : reached).at(-1) ?? links[0];
  for (const link of links) {
    if (link === current) link.setAttribute('aria-current', 'true');
    else link.removeAttribute('aria-current');
  }
}
