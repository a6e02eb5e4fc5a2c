"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const list = get("cards");
  const cards = [...list.children].map((node) => ({
    node,
    rank: Number(node.dataset.rank),
    // Python writes inf and nan
    score: number(node.dataset.score),
    p: number(node.dataset.p),
    kind: node.dataset.kind,
    name: node.querySelector(".path").textContent.toLowerCase(),
  }));
  const bins = [...document.querySelectorAll(".bin")];
  const form = get("filters");
  const p = get("p");

  function number(text) {
    return text === "-inf" ? -Infinity : text === "inf" ? Infinity : Number.parseFloat(text);
  }

  // From the smallest p-value that the model can give, on the left, to 1: equal steps are equal factors.
  function greatestP() {
    if (!p || p.value === p.max) return 1;
    return Number(p.dataset.least) ** (1 - p.value / p.max);
  }

  function apply() {
    const kind = get("kind").value;
    const text = get("text").value.trim().toLowerCase();
    const from = get("from").value === "" ? -Infinity : Number(get("from").value);
    const to = get("to").value === "" ? Infinity : Number(get("to").value);
    const most = greatestP();
    if (p) get("p-shown").value = most === 1 ? "1" : most.toPrecision(2);
    let shown = 0;
    for (const card of cards) {
      const right = (kind === "" || card.kind === kind) && (text === "" || card.name.includes(text)) &&
        card.score >= from && card.score <= to && (most === 1 || card.p <= most * (1 + 1e-9));
      card.node.hidden = !right;
      shown += right;
    }
    get("count").textContent = `${shown} of ${cards.length} shown`;
    get("nothing").hidden = shown > 0;
    for (const bin of bins) {
      const chosen = get("from").value === (bin.dataset.low === "-inf" ? "" : bin.dataset.low) &&
        get("to").value === (bin.dataset.high === "inf" ? "" : bin.dataset.high) && (from > -Infinity || to < Infinity);
      bin.classList.toggle("chosen", chosen);
    }
  }

  function sort() {
    const order = get("order").value;
    const compare = order === "name" ? (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.rank - b.rank)
      : order === "normal" ? (a, b) => b.rank - a.rank : (a, b) => a.rank - b.rank;
    list.append(...[...cards].sort(compare).map((card) => card.node));
  }

  function fade() {
    const opacity = get("opacity");
    if (opacity) document.documentElement.style.setProperty("--maps", opacity.value / 100);
  }

  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { apply(); sort(); fade(); }));
  get("order").addEventListener("change", sort);
  get("opacity")?.addEventListener("input", fade);
  for (const bin of bins) {
    bin.addEventListener("click", () => {
      const again = bin.classList.contains("chosen");
      get("from").value = again || bin.dataset.low === "-inf" ? "" : bin.dataset.low;
      get("to").value = again || bin.dataset.high === "inf" ? "" : bin.dataset.high;
      apply();
    });
  }

  // Each normal image is in the page once, however many images it is near to; it is put in as a card comes near.
  const near = JSON.parse(get("near").textContent);
  const show = (node) => {
    for (const image of node.querySelectorAll("img[data-near]")) image.src = near[image.dataset.near];
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      show(entry.target);
      watcher.unobserve(entry.target);
    }
  }, { rootMargin: "800px" });
  for (const card of cards) watcher.observe(card.node);
  show(get("wrong"));
  apply();
})();
