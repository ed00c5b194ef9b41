// Light, dark, or as the system has it.

const THEMES = ['auto', 'light', 'dark'];
const THEME_KEY = 'mmft-report-theme';

function startTheme() {
  const button = document.getElementById('theme');
  let theme = storedTheme();
  const show = () => {
    document.documentElement.dataset.theme = theme;
    button.setAttribute('aria-label', `Theme: ${theme}`);
    button.replaceChildren(make('span', {}, 'Theme: '), theme);
  };
  button.hidden = false;
  button.addEventListener('click', () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    show();
    storeTheme(theme);
  });
  show();
}

// A browser may refuse storage, to files above all; the choice then lasts as long as the page.
function storedTheme() {
  try {
    const theme = localStorage.getItem(THEME_KEY);
    return THEMES.includes(theme) ? theme : 'auto';
  } catch {
    return 'auto';
  }
}

function storeTheme(theme) {
  try {
    localStorage.setItem(THEME_KEY, theme);
  } catch {
    return;
  }
}
