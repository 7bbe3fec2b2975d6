// Runs before anything is drawn, so that a chosen theme does not flash. Without a choice the system's counts.
(() => {
  try {
    const chosen = JSON.parse(localStorage.getItem("baton.theme"));
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // No storage, or somebody else's value in it: the system's theme.
  }
})();
