// The page: four views over one server. It asks, draws what it is told, and keeps every choice in the address.

const $ = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
let catalog;

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && typeof value !== "string") node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer: is gambrel ui still running?");
  }
  const text = await response.text();
  let found;
  try { found = JSON.parse(text); } catch { found = { error: `the server answered ${response.status}` }; }
  if (!response.ok) throw new Error(found.error || `the server answered ${response.status}`);
  return found;
}

const send = (path, data) => ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(data) });

function problem(id, error) {
  $(id).hidden = !error;
  $(id).textContent = error ? error.message : "";
}

// Charts ------------------------------------------------------------------------------------------------------------
// A spec is taken apart into its shape and the numbers that fill it. While the shape stays, a new answer only replaces
// numbers in the running view, which is several times as fast as compiling the chart again.

const charts = new Map();
const whenVega = new Promise((resolve) => {
  const look = () => (window.vegaEmbed ? resolve() : setTimeout(look, 5));
  look();
});

function takeApart(spec) {
  const values = {}, data = {}, names = new Map();
  let sets = 0;
  const name = (kind, value) => {
    const key = kind + JSON.stringify(value);
    if (!names.has(key)) {
      names.set(key, `p${names.size}`);
      values[names.get(key)] = value;
    }
    return { expr: names.get(key) };
  };
  const mark = (old) => {
    if (typeof old !== "object" || old.type !== "text") return old;
    const made = { ...old };
    for (const key of ["align", "dx", "dy"]) if (typeof old[key] === "string" || typeof old[key] === "number") made[key] = name(`mark ${sets} ${key}`, old[key]);
    return made;
  };
  const channel = (kind, old) => {
    const made = { ...old };
    const domain = old.scale?.domain;
    if (Array.isArray(domain) && typeof domain[0] === "number") {
      made.scale = { ...old.scale, domain: domain.map((v, i) => name(`${kind} domain ${i}`, v)) };
    }
    if (Array.isArray(old.axis?.values)) made.axis = { ...old.axis, values: name(`${kind} ticks`, old.axis.values) };
    if (typeof old.value === "number") made.value = name(`${kind} value ${sets}`, old.value);
    return made;
  };
  const layer = (old) => {
    const made = { ...old };
    if (old.mark) made.mark = mark(old.mark);
    const tips = Array.isArray(old.encoding?.tooltip) && old.data?.values && old.encoding.tooltip.every((t) => t.field) ? old.encoding.tooltip : null;
    if (old.data?.values) {
      made.data = { name: `d${sets}` };
      const tip = (row) => ({ ...row, tip: Object.fromEntries(tips.map((t) => [t.title || t.field, row[t.field]])) });
      data[`d${sets}`] = tips ? old.data.values.map(tip) : old.data.values;
      sets += 1;
    }
    if (tips) made.mark = { ...(typeof made.mark === "string" ? { type: made.mark } : made.mark), tooltip: { expr: "datum.tip" } };
    if (old.encoding) made.encoding = Object.fromEntries(Object.entries(old.encoding).filter(([k]) => !(tips && k === "tooltip")).map(([k, v]) => [k, Array.isArray(v) ? v : channel(k, v)]));
    if (old.layer) made.layer = old.layer.map(layer);
    return made;
  };
  return { shape: layer(spec), values, data };
}

// Legends do not wrap by themselves: as many columns as fit, from the length of their words.
function legendColumns(spec, width) {
  const scales = (spec.layer || [spec]).map((one) => one.encoding?.color?.scale?.domain).filter(Boolean);
  const words = (scales[0] || []).map((word) => 7.2 * word.length + 46);
  if (words.reduce((a, b) => a + b, 0) < width - 60) return 0;
  return Math.max(1, Math.floor((width - 40) / Math.max(...words)));
}

async function draw(box, spec) {
  await whenVega;
  const columns = legendColumns(spec, box.clientWidth);
  const { shape, values, data } = takeApart(spec);
  const key = JSON.stringify([shape, columns, dark.matches]);
  const old = charts.get(box);
  if (old && old.key === key && old.view) {
    for (const [name, value] of Object.entries(values)) if (old.values[name] !== JSON.stringify(value)) {
      old.view.signal(name, value);
      old.values[name] = JSON.stringify(value);
    }
    for (const [name, rows] of Object.entries(data)) {
      const text = JSON.stringify(rows);
      if (old.data[name] !== text) { old.view.data(name, rows); old.data[name] = text; }
    }
    old.spec = spec;
    await old.view.resize().runAsync();
    return;
  }
  const config = structuredClone(catalog.themes[dark.matches ? "dark" : "light"]);
  config.legend.columns = columns;
  config.aria = false; // the figure itself is labelled; a canvas has no parts that a reader could reach
  config.mark = { ...config.mark, invalid: "show" };
  const full = {
    ...shape, config, datasets: data, width: "container", autosize: { type: "fit-x", contains: "padding", resize: true },
    params: [...(shape.params || []), ...Object.entries(values).map(([name, value]) => ({ name, value }))],
  };
  const kept = { key, spec, values: {}, data: {}, columns, view: null };
  charts.set(box, kept);
  const holder = el("div", { class: "chart-holder" });
  holder.style.width = `${box.clientWidth}px`;
  holder.style.position = "absolute";
  holder.style.visibility = "hidden";
  box.append(holder);
  const result = await vegaEmbed(holder, full, { actions: false, ast: true, defaultStyle: false, mode: "vega-lite", renderer: "canvas", tooltip: { disableDefaultStyle: true } });
  if (charts.get(box) !== kept) { result.finalize(); holder.remove(); return; } // a newer answer overtook this one
  if (old) old.result?.finalize();
  for (const [name, value] of Object.entries(values)) kept.values[name] = JSON.stringify(value);
  for (const [name, rows] of Object.entries(data)) kept.data[name] = JSON.stringify(rows);
  kept.result = result;
  kept.view = result.view;
  holder.removeAttribute("style");
  box.replaceChildren(holder);
  await result.view.resize().runAsync();
}

function forget(root) {
  for (const [box, kept] of charts) if (root.contains(box)) { kept.result?.finalize(); charts.delete(box); }
}

const redrawAll = () => Promise.all([...charts].map(([box, kept]) => (box.isConnected ? draw(box, kept.spec) : charts.delete(box))));
dark.addEventListener("change", redrawAll);
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => { for (const [box, kept] of charts) if (box.isConnected && legendColumns(kept.spec, box.clientWidth) !== kept.columns) draw(box, kept.spec); }, 150);
});

// Parts of a report: the same figures and tables as the files that gambrel writes ------------------------------------

function tellFacts(root, facts) { // only what changed is touched: layout is what costs
  const list = root.firstElementChild;
  if (!list || list.children.length !== facts.length) { root.replaceChildren(factList(facts)); return; }
  facts.forEach((f, i) => {
    const [dt, dd, note] = list.children[i].children;
    if (dt.textContent !== f.label) dt.textContent = f.label;
    if (dd.textContent !== f.value) dd.textContent = f.value;
    if (dd.className !== f.status) dd.className = f.status;
    if (note && note.textContent !== f.note) note.textContent = f.note;
  });
}

function factList(facts) {
  return el("dl", { class: "facts" }, ...facts.map((f) => el("div", {}, el("dt", {}, f.label), el("dd", { class: f.status || null }, f.value), el("dd", { class: "note" }, f.note))));
}

function figure(item) {
  const box = el("div", { class: "chart", "data-chart": item.name, role: "img", "aria-label": item.sentence });
  return el("figure", { "data-item": item.name }, el("figcaption", {}, el("h3", {}, item.heading), el("p", { class: "caption" }, item.sentence)), box);
}

function table(item) {
  const kind = (text, i) => (item.numeric[i] ? "number" : item.columns[i] === "verdict" ? "verdict" : text.length > 28 ? "words" : null);
  const head = el("tr", {}, ...item.columns.map((c, i) => el("th", { scope: "col", class: item.numeric[i] ? "number" : null }, c)));
  const body = item.rows.map((row, r) => el("tr", { class: item.status[r] || null }, ...row.map((text, i) => el("td", { class: kind(text, i), "data-column": item.columns[i] }, text))));
  return el("div", { class: "table" }, el("h3", {}, item.heading), el("p", { class: "caption" }, item.sentence),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": item.heading }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...body))));
}

const seen = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { const spec = seen.get(entry.target); if (spec) { seen.delete(entry.target); draw(entry.target, spec); } }
}, { rootMargin: "300px" });

function show(items) { // drawn when they come near the screen, so that a long report opens at once
  return el("div", { class: "grid" }, ...items.map((item) => {
    if (item.kind === "table") return table(item);
    const made = figure(item);
    const box = made.querySelector(".chart");
    box.style.minHeight = `${(item.spec.height || 320) + 60}px`;
    seen.set(box, item.spec);
    watcher.observe(box);
    return made;
  }));
}

// Update the figures of a grid in place; those on the screen first, the rest when the browser has time.
async function update(grid, items) {
  const fits = grid.children.length === items.length && items.every((item, i) => grid.children[i].dataset.item === item.name);
  if (!fits) {
    forget(grid);
    grid.replaceChildren(...items.map(figure));
  }
  const near = [], far = [];
  const places = items.map((_, i) => grid.children[i].querySelector(".chart").getBoundingClientRect());
  items.forEach((item, i) => {
    const fig = grid.children[i], box = fig.querySelector(".chart");
    const [h3, caption] = fig.querySelector("figcaption").children;
    if (h3.textContent !== item.heading) h3.textContent = item.heading;
    if (caption.textContent !== item.sentence) { caption.textContent = item.sentence; box.setAttribute("aria-label", item.sentence); }
    const place = places[i];
    (place.top < innerHeight && place.bottom > 0 ? near : far).push([box, item.spec]);
  });
  await Promise.all(near.map(([box, spec]) => draw(box, spec)));
  return () => Promise.all(far.map(([box, spec]) => draw(box, spec)));
}

// Words -------------------------------------------------------------------------------------------------------------

const count = (n) => Math.round(n).toLocaleString("en");
const slider = { // eight steps a doubling
  batch: { value: (i) => Math.round(2 ** (i / 8)), index: (v) => Math.round(8 * Math.log2(v)) },
  context: { value: (i) => Math.round(2 ** (7 + i / 8)), index: (v) => Math.round(8 * (Math.log2(v) - 7)) },
};

function options(select, groups, chosen) {
  select.replaceChildren(...groups.map(([label, entries]) => {
    const made = entries.map(([value, text]) => el("option", { value, selected: value === chosen }, text));
    return label ? el("optgroup", { label }, ...made) : made;
  }).flat());
}

function grouped(list, group, entry) {
  const found = new Map();
  for (const one of list) (found.get(group(one)) || found.set(group(one), []).get(group(one))).push(entry(one));
  return [...found].sort((a, b) => a[0].localeCompare(b[0]));
}

const modelGroups = () => grouped(catalog.models, (m) => m.split("/")[0], (m) => [m, m.slice(m.indexOf("/") + 1)]);
const gpuText = (g) => `${g.title.replace(/^(NVIDIA|AMD|Intel|Google|AWS|Apple) /, "")}${g.usd_per_hour ? ` · $${g.usd_per_hour.toFixed(2)}/h` : ""}`;
const gpuGroups = () => grouped(catalog.gpus, (g) => g.vendor, (g) => [g.name, gpuText(g)]);

// Explore -----------------------------------------------------------------------------------------------------------

const FIELDS = ["model", "gpu", "tp", "weights", "kv", "price"];
const explore = { query: new URLSearchParams(), busy: false, again: false, started: 0 };

function setupForm(prefix) {
  const id = (field) => `${prefix || "a"}-${field}`;
  const field = (name, text, control, wide) => el("label", { class: wide ? "field wide" : "field" }, el("span", {}, text), control);
  const second = prefix === "b.";
  const form = el("fieldset", { class: "setup", "data-prefix": prefix },
    el("legend", { class: "hidden" }, second ? "Second configuration" : "Configuration"),
    field("model", "Model", el("select", { id: id("model"), "data-field": "model" }), true),
    field("gpu", "Accelerator", el("select", { id: id("gpu"), "data-field": "gpu" }), true),
    field("tp", "Tensor parallel", el("select", { id: id("tp"), "data-field": "tp" })),
    field("weights", "Weights", el("select", { id: id("weights"), "data-field": "weights" })),
    field("kv", "KV cache", el("select", { id: id("kv"), "data-field": "kv" })),
    field("price", "$/GPU-hour", el("input", { type: "number", id: id("price"), "data-field": "price", min: "0.01", step: "any", placeholder: "catalog" })),
    el("button", { type: "button", id: second ? "single" : "compare", onclick: () => { compare(!second); } }, second ? "Remove" : "Compare"));
  options(form.querySelector("[data-field=model]"), modelGroups(), catalog.default.model);
  options(form.querySelector("[data-field=gpu]"), gpuGroups(), catalog.default.gpu);
  form.addEventListener("change", (event) => {
    const { field: name } = event.target.dataset;
    if (!name) return;
    const key = prefix + name;
    if (event.target.value === "") explore.query.delete(key); else explore.query.set(key, event.target.value);
    if (name === "model") for (const other of ["weights", "kv", "tp"]) explore.query.delete(prefix + other);
    if (name === "gpu") for (const other of ["kv", "price"]) explore.query.delete(prefix + other);
    changed();
  });
  return form;
}

function compare(on) {
  if (on) explore.query.set("b.gpu", explore.query.get("gpu") === "h200-sxm" ? "h100-sxm" : "h200-sxm");
  else for (const field of FIELDS) explore.query.delete(`b.${field}`);
  changed();
  if (on) $("setups").lastElementChild.querySelector("select").focus();
}

const comparing = () => FIELDS.some((field) => explore.query.has(`b.${field}`));

function fillSetups(sides) {
  const forms = $("setups").children;
  const wanted = comparing() ? 2 : 1;
  if (forms.length !== wanted) $("setups").replaceChildren(...["", "b."].slice(0, wanted).map(setupForm));
  if ($("compare")) $("compare").hidden = wanted === 2;
  if (!sides) return;
  sides.forEach((side, i) => {
    const form = $("setups").children[i];
    if (!form) return;
    const at = (name) => form.querySelector(`[data-field=${name}]`);
    const { setup, choices } = side;
    const same = JSON.stringify(side.setup) + JSON.stringify(choices);
    if (form.dataset.same === same) return;
    form.dataset.same = same;
    at("model").value = setup.model;
    at("gpu").value = setup.gpu;
    options(at("tp"), [["", choices.tp.map((n) => [String(n), String(n)])]], String(setup.tp));
    options(at("weights"), [["", choices.weights.map((w, j) => [w, j === 0 ? `${w} (checkpoint)` : w])]], setup.weights || choices.weights[0]);
    options(at("kv"), [["", choices.kv.map((k) => [k, k])]], setup.kv || "bf16");
    if (document.activeElement !== at("price")) at("price").value = setup.price ?? "";
    const known = catalog.gpus.find((g) => g.name === setup.gpu);
    at("price").placeholder = known?.usd_per_hour ? known.usd_per_hour.toFixed(2) : "unknown";
  });
}

function fillSliders() {
  const batch = Number(explore.query.get("batch")) || 32, context = Number(explore.query.get("context")) || 4096;
  $("batch").value = slider.batch.index(batch);
  $("context").value = slider.context.index(context);
  words(batch, context);
  $("form").value = explore.query.get("form") || "max";
}

function words(batch, context) {
  $("batch-out").textContent = `${count(batch)} sequence${batch > 1 ? "s" : ""}`;
  $("context-out").textContent = `${count(context)} tokens`;
  $("batch").setAttribute("aria-valuetext", $("batch-out").textContent);
  $("context").setAttribute("aria-valuetext", $("context-out").textContent);
}

let addressTimer = 0;
function changed(started = performance.now()) {
  explore.started = started;
  clearTimeout(addressTimer);
  addressTimer = setTimeout(() => history.replaceState(null, "", `/explore?${explore.query}`), 200);
  if (explore.busy) { explore.again = true; return; }
  answer();
}

async function answer() {
  explore.busy = true;
  do {
    explore.again = false;
    const { started } = explore;
    try {
      const found = await ask(`/api/explore?${explore.query}`);
      problem("explore-problem", null);
      const rest = await showSides(found.sides);
      const took = performance.now() - started;
      (window.repaints ||= []).push(took);
      clearTimeout(explore.later);
      explore.later = setTimeout(() => rest.forEach((draws) => draws()), explore.drawn ? 120 : 0);
      explore.drawn = true;
      $("explore").dataset.ready = "true";
    } catch (error) {
      problem("explore-problem", error);
      fillSetups(null);
    }
  } while (explore.again);
  explore.busy = false;
}

async function showSides(sides) {
  const root = $("sides");
  fillSetups(sides);
  root.className = sides.length === 2 ? "sides two" : "sides one";
  while (root.children.length > sides.length) { forget(root.lastElementChild); root.lastElementChild.remove(); }
  while (root.children.length < sides.length) root.append(el("div", { class: "side" }, el("h2", {}), el("div", { class: "told", "aria-live": "off" }), el("div", { class: "grid" }), el("p", { class: "basis" })));
  return Promise.all(sides.map((side, i) => {
    const [title, told, grid, basis] = root.children[i].children;
    if (title.textContent !== side.title) title.textContent = side.title;
    tellFacts(told, side.facts);
    basis.textContent = side.basis.join(" ");
    return update(grid, side.items);
  }));
}

function openExplore(query) {
  explore.query = query;
  fillSetups(null);
  fillSliders();
  changed();
}

function startExplore() {
  for (const name of ["batch", "context"]) $(name).addEventListener("input", (event) => {
    const started = performance.now();
    explore.query.set(name, slider[name].value(Number(event.target.value)));
    words(Number(explore.query.get("batch")) || 32, Number(explore.query.get("context")) || 4096);
    changed(started);
  });
  $("form").addEventListener("change", (event) => { explore.query.set("form", event.target.value); changed(); });
  $("explore-form").addEventListener("submit", (event) => event.preventDefault());
}

// The four views ----------------------------------------------------------------------------------------------------

const views = { explore: openExplore };

function open(address) {
  const [, view, ...rest] = address.pathname.split("/");
  const name = views[view] ? view : "explore";
  for (const section of document.querySelectorAll(".view")) section.hidden = section.id !== name;
  for (const link of document.querySelectorAll("nav.top a[data-view]")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  document.title = `${name[0].toUpperCase()}${name.slice(1)} · gambrel`;
  views[name](new URLSearchParams(address.search), rest);
}

function go(path) {
  history.pushState(null, "", path);
  open(new URL(location.href));
  scrollTo(0, 0);
  $("main").focus({ preventScroll: true });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='/']");
  if (!link || link.hasAttribute("download") || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  const same = link.dataset.view && !$(link.dataset.view).hidden;
  if (!same) go(link.getAttribute("href"));
});
addEventListener("popstate", () => open(new URL(location.href)));

catalog = await ask("/api/catalog");
startExplore();
open(new URL(location.href));
document.documentElement.dataset.ready = String(Math.round(performance.now()));
