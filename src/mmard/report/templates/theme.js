// Remembers the chosen colours and, while the page reloads itself, what was unfolded. The page is whole without it.
(() => {
  const held = (store, key, value) => {
    try {
      if (value === undefined) return store.getItem(key);
      store.setItem(key, value);
    } catch (refused) {
      return null;
    }
  };
  const kept = document.getElementById("theme-" + held(localStorage, "mmard-theme"));
  if (kept) kept.checked = true;
  for (const choice of document.querySelectorAll("input[name=theme]")) {
    choice.addEventListener("change", () => held(localStorage, "mmard-theme", choice.value));
  }
  const folds = [...document.querySelectorAll("main details")];
  if (document.querySelector("meta[http-equiv=refresh]")) {
    const open = (held(sessionStorage, "mmard-open") || "").split(",");
    folds.forEach((fold, i) => {
      if (open.includes(String(i))) fold.open = true;
      fold.addEventListener("toggle", () => {
        held(sessionStorage, "mmard-open", folds.flatMap((f, k) => (f.open ? [k] : [])).join(","));
      });
    });
  }
  if (matchMedia("(max-width: 68rem)").matches) document.querySelector(".contents").open = false;
})();
