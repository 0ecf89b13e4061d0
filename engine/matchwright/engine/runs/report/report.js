"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });

  const form = document.getElementById("search");
  if (!form) return;
  const fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
  const queries = [...document.querySelectorAll(".query")].map((element) => ({
    element,
    text: fold(element.textContent),
    way: element.dataset.way,
    outcome: element.dataset.outcome,
  }));
  const field = (name) => document.getElementById(name);
  const show = () => {
    const words = fold(field("words").value).split(/\s+/).filter(Boolean);
    const way = field("way").value, outcome = field("outcome").value;
    let shown = 0;
    for (const query of queries) {
      const fits = (!way || query.way === way) && (!outcome || query.outcome === outcome)
        && words.every((word) => query.text.includes(word));
      query.element.hidden = !fits;
      shown += fits;
    }
    field("count").textContent = `${shown.toLocaleString("en")} shown`;
    field("nothing").hidden = shown > 0;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details.numbers")) details.open = true;
  });
  show();
})();
