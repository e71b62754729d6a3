// Before the first paint: the theme that was chosen here earlier; without one, the system's.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("mlx-spec.theme");
  } catch {
    // Storage is forbidden: the system's.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
