// Runs before the first paint, so that a page never flashes in the other scheme.
(() => {
  try {
    const chosen = localStorage.getItem("kyomei-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch { /* storage may be switched off: then the system's scheme holds */ }
})();
