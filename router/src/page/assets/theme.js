// Sets the theme before anything is drawn. What was chosen is remembered where the browser stores anything at all.
(() => {
  "use strict";
  const KEY = "kvferry-theme";
  const THEMES = ["auto", "light", "dark"];

  const remembered = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // Storage is denied: the choice lasts as long as the page.
    }
  };
  const remember = (theme) => {
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // As above.
    }
  };

  let theme = THEMES.includes(remembered()) ? remembered() : "auto";
  const show = () => {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${theme}`;
  };
  show();
  document.addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      remember(theme);
      show();
    });
  });
})();
