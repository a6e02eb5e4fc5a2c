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
    space: node.dataset.space,
    folder: node.dataset.folder,
    path: node.dataset.path,
    name: node.querySelector(".path").textContent.normalize("NFC").toLowerCase(),
  }));
  const bins = [...document.querySelectorAll(".bin")];
  const form = get("filters");
  const p = get("p");
  const value = (id) => get(id)?.value ?? "";

  function number(text) {
    return text === "-inf" ? -Infinity : text === "inf" ? Infinity : Number.parseFloat(text);
  }

  // ----- filters, order and groups

  // From the smallest p-value that the model can give, on the left, to 1: equal steps are equal factors.
  function greatestP() {
    if (!p || p.value === p.max) return 1;
    return Number(p.dataset.least) ** (1 - p.value / p.max);
  }

  function isOfKind(card, kind) {
    if (kind === "labelled" || kind === "unlabelled") return labels.has(card.path) === (kind === "labelled");
    return kind === "" || card.kind === kind;
  }

  function apply() {
    const [kind, folder, space] = ["kind", "folder", "space"].map(value);
    const text = value("text").trim().normalize("NFC").toLowerCase();
    const from = value("from") === "" ? -Infinity : Number(value("from"));
    const to = value("to") === "" ? Infinity : Number(value("to"));
    const most = greatestP();
    if (p) get("p-shown").value = most === 1 ? "1" : most.toPrecision(2);
    let shown = 0;
    for (const card of cards) {
      const right = isOfKind(card, kind) && (folder === "" || card.folder === folder) &&
        (space === "" || card.space === space) && (text === "" || card.name.includes(text)) &&
        card.score >= from && card.score <= to && (most === 1 || card.p <= most * (1 + 1e-9));
      card.node.hidden = !right;
      shown += right;
    }
    get("count").textContent = `${shown} of ${cards.length} shown`;
    get("nothing").hidden = shown > 0;
    get("save-shown").disabled = shown === 0;
    for (const bin of bins) {
      const chosen = value("from") === (bin.dataset.low === "-inf" ? "" : bin.dataset.low) &&
        value("to") === (bin.dataset.high === "inf" ? "" : bin.dataset.high) && (from > -Infinity || to < Infinity);
      bin.classList.toggle("chosen", chosen);
    }
    for (const heading of list.querySelectorAll(".group")) {
      heading.hidden = !cards.some((card) => card.folder === heading.dataset.folder && !card.node.hidden);
    }
    if (current?.node.hidden !== false) choose(ordered().find((card) => !card.node.hidden));
  }

  function sort() {
    const order = value("order");
    const compare = order === "name" ? (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.rank - b.rank)
      : order === "normal" ? (a, b) => b.rank - a.rank : (a, b) => a.rank - b.rank;
    const sorted = [...cards].sort(compare);
    for (const heading of list.querySelectorAll(".group")) heading.remove();
    if (!get("group")?.checked) {
      list.append(...sorted.map((card) => card.node));
      return;
    }
    for (const option of [...get("folder").options].slice(1)) {
      const inside = sorted.filter((card) => card.folder === option.value);
      if (!inside.length) continue;
      const heading = document.createElement("li");
      heading.className = "group";
      heading.dataset.folder = option.value;
      heading.append(Object.assign(document.createElement("h3"), { textContent: option.textContent }));
      list.append(heading, ...inside.map((card) => card.node));
    }
  }

  function fade() {
    const opacity = get("opacity");
    if (opacity) document.documentElement.style.setProperty("--maps", opacity.value / 100);
  }

  // ----- labels: 1 normal, -1 anomaly, by path; kept by the browser until they are saved

  const labels = new Map();
  const labelled = new Map();
  const place = `transformaly ${document.querySelector("time").dateTime}`;
  for (const node of document.querySelectorAll("li[data-path]")) {
    const buttons = get("label").content.cloneNode(true);
    node.querySelector(".text").append(buttons);
    labelled.set(node.dataset.path, [...(labelled.get(node.dataset.path) ?? []), node]);
    node.querySelector(".label").addEventListener("click", (event) => {
      const chosen = event.target.closest("button")?.value;
      if (chosen) label(node.dataset.path, labels.get(node.dataset.path) === chosen ? "" : chosen);
    });
  }
  try {
    for (const [path, chosen] of JSON.parse(localStorage.getItem(place) ?? "[]")) showLabel(path, chosen);
  } catch { /* a browser that keeps nothing */ }

  function label(path, chosen) {
    showLabel(path, chosen);
    try { localStorage.setItem(place, JSON.stringify([...labels])); } catch { /* likewise */ }
  }

  function showLabel(path, chosen) {
    if (!labelled.has(path)) return;
    if (chosen) labels.set(path, chosen); else labels.delete(path);
    for (const node of labelled.get(path)) {
      for (const button of node.querySelectorAll(".label button")) button.ariaPressed = String(button.value === chosen);
    }
    get("save-labels").disabled = labels.size === 0;
    get("save-labels").textContent = labels.size ? `Save ${labels.size} label${labels.size > 1 ? "s" : ""}` : "Save labels";
  }

  // ----- tables

  // Paths are bytes, which need not be text: a table is made of bytes, one in each character of a string.
  function save(name, rows) {
    const field = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const content = rows.map((row) => row.map(field).join(",") + "\n").join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([Uint8Array.from(content, (c) => c.charCodeAt(0))], { type: "text/csv" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  const bytes = (path) => path.replace(/%([0-9A-F]{2})/g, (_, hex) => String.fromCharCode(Number.parseInt(hex, 16)));
  const known = (text) => (text === "nan" ? "" : text);
  const ordered = () => cards.toSorted((a, b) => (a.node.compareDocumentPosition(b.node) & 4 ? -1 : 1));

  get("save-labels").addEventListener("click", () => {
    save("labels.csv", [["path", "label"], ...[...labels].map(([path, chosen]) => [bytes(path), chosen])]);
  });
  get("save-shown").addEventListener("click", () => {
    const rows = ordered().filter((card) => !card.node.hidden).map(({ node: { dataset: row } }) =>
      [bytes(row.path), row.score, row.decision, known(row.p), row.kind]);
    save("images.csv", [["path", "score", "decision", "p_value", "prediction"], ...rows]);
  });

  // ----- keys: one card can be reached by Tab, the others from there by arrows

  let current;
  function choose(card, focus = false) {
    if (current) current.node.tabIndex = -1;
    current = card;
    if (!card) return;
    card.node.tabIndex = 0;
    if (focus) {
      card.node.focus({ preventScroll: true });
      card.node.scrollIntoView({ block: "nearest" });
    }
  }

  function step(key) {
    const shown = ordered().filter((card) => !card.node.hidden);
    const at = shown.indexOf(current);
    if (key === "ArrowRight" || key === "ArrowLeft") return shown[at + (key === "ArrowRight" ? 1 : -1)];
    const down = key === "ArrowDown";
    const { left, top } = current.node.getBoundingClientRect();
    const rest = down ? shown.slice(at + 1) : shown.slice(0, at).reverse();
    return rest.find(({ node }) => {
      const box = node.getBoundingClientRect();
      return Math.abs(box.left - left) < 2 && (down ? box.top > top : box.top < top);
    });
  }

  const keys = { n: "1", a: "-1", u: "" };
  list.addEventListener("focusin", (event) => choose(cards.find((card) => card.node.contains(event.target)) ?? current));
  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !current) return;
    const next = event.key.startsWith("Arrow") ? step(event.key) : undefined;
    if (next) choose(next, true);
    else if (event.key.toLowerCase() in keys) label(current.path, keys[event.key.toLowerCase()]);
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input, select")) return;
    event.preventDefault();
    get("filter-box").open = true;
    get("text").focus();
  });

  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { sort(); apply(); fade(); }));
  get("order").addEventListener("change", sort);
  get("group")?.addEventListener("change", () => { sort(); apply(); });
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
  if (matchMedia("(max-width: 640px)").matches) get("filter-box").open = false; // the first picture comes first
  apply();
})();
