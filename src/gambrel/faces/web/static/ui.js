// The page: five views over one server. It asks, draws what it is told, and keeps every choice in the address.

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

function tree(item) {
  const line = (node) => [node.name, " ", el("b", {}, node.value), " ", el("span", { class: "origin" }, node.origin)];
  const branch = (node) => (node.parts.length ? el("details", {}, el("summary", {}, ...line(node)), ...node.parts.map(branch)) : el("p", { class: "leaf" }, ...line(node)));
  return el("div", { class: "table trace" }, el("h3", {}, item.heading), el("p", { class: "caption" }, item.sentence), ...item.roots.map(branch));
}

const seen = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { const spec = seen.get(entry.target); if (spec) { seen.delete(entry.target); draw(entry.target, spec); } }
}, { rootMargin: "300px" });

function show(items) { // drawn when they come near the screen, so that a long report opens at once
  return el("div", { class: "grid" }, ...items.map((item) => {
    if (item.kind === "table") return table(item);
    if (item.kind === "tree") return tree(item);
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
      for (const tp of document.querySelectorAll("[data-field=tp]")) if (!tp.options.length) options(tp, [["", ["", "1", "2", "4", "8"].map((n) => [n, n])]], "");
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
  for (const input of document.querySelectorAll(".config-file")) input.addEventListener("change", () => { if (input.files[0]) takeConfig(input.files[0], input.closest("p").querySelector(".config-note")); input.value = ""; });
}

// A config.json becomes a model that every list offers.
async function takeConfig(file, note) {
  const alert = $("plan").hidden ? "explore-problem" : "plan-problem";
  try {
    const { name, total_params: params } = await ask(`/api/models?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
    catalog = await ask("/api/catalog");
    note.textContent = `${name}: ${(params / 1e9).toPrecision(3)} billion parameters`;
    for (const select of document.querySelectorAll("[data-field=model], #plan-model, #served-model")) options(select, modelGroups(), select.value);
    problem(alert, null);
    if (alert === "plan-problem") { $("plan-model").value = name; return; }
    for (const other of ["weights", "kv", "tp"]) explore.query.delete(other);
    explore.query.set("model", name);
    changed();
  } catch (error) { problem(alert, error); }
}

// Traffic -----------------------------------------------------------------------------------------------------------

let traffic = null; // the log that is open: what the server said about it
const planQuery = () => new URLSearchParams(Object.entries({ log: traffic.id, start: traffic.start_s, stop: traffic.stop_s }).filter(([, v]) => v !== null && v !== undefined));

function duration(seconds) {
  const [n, unit] = seconds < 120 ? [seconds, "s"] : seconds < 7200 ? [seconds / 60, "min"] : seconds < 172800 ? [seconds / 3600, "h"] : [seconds / 86400, "days"];
  return `${n < 10 ? n.toFixed(1) : Math.round(n)} ${unit}`;
}

function openTraffic(query) {
  const log = query.get("log");
  if (!log) { if (traffic) history.replaceState(null, "", `/traffic?${planQuery()}`); return; }
  if (traffic?.id === log && traffic.start_s === numberOf(query.get("start")) && traffic.stop_s === numberOf(query.get("stop"))) return;
  loadWindow(log, query.get("start"), query.get("stop"));
}

const numberOf = (text) => (text === null || text === "" ? null : Number(text));

async function loadWindow(id, start, stop) {
  const query = new URLSearchParams(Object.entries({ start_s: start, stop_s: stop }).filter(([, v]) => v !== null && v !== undefined && v !== ""));
  try {
    showTraffic(await ask(`/api/traffic/${encodeURIComponent(id)}?${query}`));
    problem("traffic-problem", null);
  } catch (error) { problem("traffic-problem", error); }
}

function showTraffic(found, fresh = false) {
  traffic = found;
  history.replaceState(null, "", `/traffic?${planQuery()}`);
  const root = $("traffic-result");
  forget(root);
  const whole = found.span_s;
  const range = (name, text, value) => {
    const out = el("output", {}, duration(value * whole));
    const input = el("input", { type: "range", id: `window-${name}`, min: "0", max: "1", step: "0.005", value: String(value), "aria-valuetext": out.textContent,
      oninput: () => { out.textContent = duration(input.value * whole); input.setAttribute("aria-valuetext", out.textContent); } });
    return el("label", { class: "slider" }, el("span", {}, `${text} `, out), input);
  };
  const part = found.start_s !== null || found.stop_s !== null;
  const windowForm = el("form", { class: "panel window", onsubmit: (event) => {
    event.preventDefault();
    const start = Number($("window-start").value), stop = Number($("window-stop").value);
    if (stop <= start) { problem("traffic-problem", new Error("the window ends before it starts")); return; }
    loadWindow(found.id, start > 0 ? start * whole : null, stop < 1 ? stop * whole : null);
  } },
  range("start", "Window from", (found.start_s ?? 0) / whole || 0), range("stop", "to", Math.min(1, (found.stop_s ?? whole) / whole) || 1),
  el("button", { type: "submit" }, "Use this window"),
  el("button", { type: "button", hidden: !part, onclick: () => loadWindow(found.id, null, null) }, "Whole log"));
  const quick = found.busiest.map((b) => el("button", { type: "button", onclick: () => loadWindow(found.id, b.start_s, b.stop_s) }, b.name));
  const heading = el("h2", { tabindex: "-1", class: "answer" }, found.name + (part ? ` from ${duration(found.start_s ?? 0)} to ${duration(found.stop_s ?? whole)}` : ""));
  root.replaceChildren(
    heading, el("p", { class: "caption" }, found.source), factList(found.facts),
    found.warnings.length ? el("ul", { class: "warnings", "aria-label": "Before you believe it" }, ...found.warnings.map((w) => el("li", {}, w))) : "",
    el("div", { class: "actions" }, el("a", { class: "go", href: `/plan?${planQuery()}`, id: "to-plan" }, "Plan for this traffic"), ...quick),
    whole > 0 && found.has_arrivals ? windowForm : "",
    show(found.items));
  if (fresh) arrive(heading);
}

function upload(file) {
  problem("traffic-problem", null);
  if (file.size > 512e6) { problem("traffic-problem", new Error(`${file.name} is larger than 512 MB: gzip it, or cut it by time`)); return; }
  const bar = $("upload"), note = $("drop-note");
  const request = new XMLHttpRequest();
  request.open("POST", `/api/traffic?name=${encodeURIComponent(file.name)}`);
  bar.hidden = false;
  bar.value = 0;
  note.textContent = `sending ${file.name}`;
  request.upload.onprogress = (event) => { bar.value = event.loaded / event.total; };
  request.upload.onload = () => { bar.removeAttribute("value"); note.textContent = `reading ${file.name}`; };
  request.onloadend = () => {
    bar.hidden = true;
    $("file").value = "";
    note.textContent = "up to 512 MB; gzip is fine";
    let found;
    try { found = JSON.parse(request.responseText); } catch { found = { error: "the server does not answer: is gambrel ui still running?" }; }
    if (request.status === 200) showTraffic(found, true); else problem("traffic-problem", new Error(found.error));
  };
  request.send(file);
}

async function generate(wanted) {
  try {
    problem("traffic-problem", null);
    showTraffic(await send("/api/traffic/generate", wanted), true);
  } catch (error) { problem("traffic-problem", error); }
}

async function startTraffic() {
  $("file").addEventListener("change", (event) => { if (event.target.files[0]) upload(event.target.files[0]); });
  let over = 0; // enter and leave come for every element on the way
  const files = (event) => event.dataTransfer?.types.includes("Files");
  const mark = () => document.body.classList.toggle("dropping", over > 0);
  addEventListener("dragenter", (event) => { if (files(event)) { over += 1; mark(); } });
  addEventListener("dragleave", (event) => { if (files(event)) { over = Math.max(0, over - 1); mark(); } });
  addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    over = 0;
    mark();
    if ($("traffic").hidden) go("/traffic");
    upload(event.dataTransfer.files[0]);
  });
  $("sample").addEventListener("click", () => generate({}));
  $("no-log").addEventListener("submit", (event) => { event.preventDefault(); generate({ profile: $("profile").value, rate: Number($("rate").value) }); });
  $("users-form").addEventListener("submit", (event) => { event.preventDefault(); generate({ users: Number($("users").value), prompt: Number($("users-prompt").value), output: Number($("users-output").value) }); });
  const { profiles } = await ask("/api/profiles");
  options($("profile"), [["", profiles.map((p) => [p.name, p.title])]], "chat");
}

// Plan --------------------------------------------------------------------------------------------------------------

const METRICS = [["ttft", "TTFT"], ["tpot", "TPOT"], ["itl", "ITL"], ["e2e", "E2E"], ["goodput", "goodput"]];
let planning = null, events = null, constants = null; // constants: the fit that prices a plan, if one does

function sloRow(metric = "ttft", stat = "p95", limit = "1s") {
  const pick = (label, entries, chosen) => { const made = el("select", { "aria-label": label }); options(made, [["", entries]], chosen); return made; };
  const name = pick("Metric", METRICS, metric), statistic = pick("Statistic", ["p50", "p90", "p95", "p99", "mean", "max"].map((s) => [s, s]), stat);
  const bound = el("input", { type: "text", value: limit, "aria-label": "Limit", placeholder: "1s, 50ms or 95%", required: true });
  name.addEventListener("change", () => { // goodput is a share of requests: it has no percentile, and no seconds
    statistic.disabled = name.value === "goodput";
    if (statistic.disabled !== bound.value.endsWith("%")) bound.value = statistic.disabled ? "95%" : "1s";
  });
  const row = el("div", { class: "slo" }, name, statistic, bound,
    el("button", { type: "button", "aria-label": "Remove this objective", onclick: () => { if ($("slos").children.length > 1) row.remove(); } }, "\u00d7"));
  return row;
}

const slos = () => [...$("slos").children].map((row) => { const [metric, stat, limit] = row.querySelectorAll("select, input"); return metric.value === "goodput" ? `goodput>=${limit.value}` : `${metric.value}.${stat.value}<=${limit.value}`; });

function startPlan() {
  options($("plan-model"), modelGroups(), catalog.default.model);
  $("slos").append(sloRow("ttft", "p95", "1s"), sloRow("tpot", "p95", "50ms"));
  $("add-slo").addEventListener("click", () => { $("slos").append(sloRow("e2e", "p95", "30s")); $("slos").lastElementChild.querySelector("select").focus(); });
  $("gpus").append(el("div", { class: "gpu heads", "aria-hidden": "true" }, el("span", {}, "accelerator"), el("span", {}, "$/h"), el("span", {}, "to be had")), ...catalog.gpus.map((g) => el("div", { class: "gpu" },
    el("label", { class: "check" }, el("input", { type: "checkbox", value: g.name, checked: g.rentable }), gpuText({ ...g, usd_per_hour: null })),
    el("input", { type: "number", min: "0.01", step: "any", "data-gpu": g.name, placeholder: g.usd_per_hour ? g.usd_per_hour.toFixed(2) : "no price", "aria-label": `$ per hour of ${g.title}` }),
    el("input", { type: "number", min: "1", max: "4096", step: "1", "data-available": g.name, placeholder: "all", "aria-label": `how many ${g.title} can be had` }))));
  $("gpus").addEventListener("change", (event) => { if (event.target.type === "checkbox") $("all-gpus").checked = false; });
  $("all-gpus").addEventListener("change", (event) => { if (event.target.checked) for (const box of $("gpus").querySelectorAll("[type=checkbox]")) box.checked = catalog.gpus.find((g) => g.name === box.value).rentable; else $("gpu-details").open = true; });
  $("plan-form").addEventListener("submit", (event) => { event.preventDefault(); runPlan(); });
  $("cancel").addEventListener("click", () => { if (planning) ask(`/api/plan/${planning}`, { method: "DELETE" }); $("cancel").disabled = true; });
}

function openPlan(query) {
  const log = query.get("log");
  $("plan-lead").textContent = "Every accelerator, parallelism and format is tried against your traffic, request by request, until the cheapest that meets the objectives is left.";
  if (log) {
    const wanted = [log, query.get("start"), query.get("stop")];
    if (traffic?.id === log && String(traffic.start_s ?? "") === (wanted[1] ?? "") && String(traffic.stop_s ?? "") === (wanted[2] ?? "")) tellTraffic();
    else ask(`/api/traffic/${encodeURIComponent(log)}?${new URLSearchParams(Object.entries({ start_s: wanted[1], stop_s: wanted[2] }).filter(([, v]) => v))}`)
      .then((found) => { traffic = found; tellTraffic(); }, (error) => { traffic = null; tellTraffic(); problem("plan-problem", error); });
  } else tellTraffic();
  const id = query.get("plan");
  constants = query.get("fit") || constants;
  tellConstants();
  if (id && id !== planning) { planning = id; follow(); }
}

function tellConstants() {
  const fitted = el("span", {}, "Constants of your fit, on its accelerator and engine. ", el("button", { type: "button", class: "quiet", onclick: () => { constants = null; tellConstants(); } }, "Use the shipped ones"));
  $("plan-constants").replaceChildren(constants ? fitted : "");
}

function tellTraffic() {
  const link = el("a", { href: traffic ? `/traffic?${planQuery()}` : "/traffic" }, traffic ? "change" : "Choose a log");
  const part = traffic && (traffic.start_s !== null || traffic.stop_s !== null) ? `, from ${duration(traffic.start_s ?? 0)} to ${duration(traffic.stop_s ?? traffic.span_s)}` : "";
  $("plan-traffic").replaceChildren(...(traffic ? [`${traffic.name}: ${count(traffic.num_requests)} requests${part} `, link] : ["No log yet. ", link, ", or ", el("button", { type: "button", class: "quiet", id: "plan-sample", onclick: async () => { traffic = await send("/api/traffic/generate", {}); tellTraffic(); } }, "use the sample log")]));
  $("run").disabled = !traffic;
}

async function runPlan() {
  problem("plan-problem", null);
  const gpus = $("all-gpus").checked ? null : [...$("gpus").querySelectorAll("[type=checkbox]:checked")].map((box) => box.value);
  const given = (kind) => Object.fromEntries([...$("gpus").querySelectorAll(`[data-${kind}]`)].filter((i) => i.value).map((i) => [i.dataset[kind], Number(i.value)]));
  const words = (id) => $(id).value.split(",").map((w) => w.trim()).filter(Boolean);
  const window_ = { id: traffic.id, start_s: traffic.start_s, stop_s: traffic.stop_s };
  try {
    const { id } = await send("/api/plan", {
      traffic: window_, model: $("plan-model").value, slo: slos(), gpus, prices: given("gpu"), available: given("available"), tp: words("plan-tp").map(Number),
      fit: constants || "", weights: words("plan-weights"), kv: words("plan-kv"), max_gpus: Number($("plan-most").value), confidence: Number($("plan-confidence").value), spare: Number($("plan-spare").value),
      growth: $("plan-growth").value ? Number($("plan-growth").value) / 100 : null, months: Number($("plan-months").value) });
    planning = id;
    const query = planQuery();
    query.set("plan", id);
    history.replaceState(null, "", `/plan?${query}`);
    follow();
  } catch (error) { problem("plan-problem", error); }
}

// Watch work of the server: its parts in the progress line, then what it found, or why there is nothing.
function watch(path, { progress, run, cancel, problemId, result, ready, done }) {
  const source = new EventSource(`${path}/events`);
  run.disabled = true;
  cancel.hidden = false;
  cancel.disabled = false;
  progress.className = "progress busy";
  const words = el("span", {}, "starting"), clock = el("span", { "aria-hidden": "true" });
  progress.replaceChildren(words, clock);
  let since = 0;
  const ticking = setInterval(() => { if (since) clock.textContent = ` \u00b7 ${((performance.now() - since) / 1000).toFixed(0)} s`; }, 500);
  problem(problemId, null);
  const end = (text) => {
    source.close();
    clearInterval(ticking);
    progress.className = "progress";
    progress.textContent = text;
    run.disabled = !ready();
    cancel.hidden = true;
  };
  source.onerror = () => { end(""); problem(problemId, new Error("this is no longer here: run it again")); };
  source.onmessage = async (message) => {
    const event = JSON.parse(message.data);
    since = performance.now() - 1000 * event.elapsed_s;
    if (event.kind === "part") words.textContent = event.text;
    if (event.kind === "cancelled") end("cancelled");
    if (event.kind === "failed") { end(""); if (result) { forget(result); result.replaceChildren(); } problem(problemId, new Error(event.text)); }
    if (event.kind === "done") {
      end(`done in ${event.elapsed_s.toFixed(1)} s`);
      try { done(await ask(path)); } catch (error) { problem(problemId, error); }
    }
  };
  return source;
}

function follow() {
  events?.close();
  events = watch(`/api/plan/${encodeURIComponent(planning)}`, { progress: $("plan-progress"), run: $("run"), cancel: $("cancel"), problemId: "plan-problem", result: $("plan-result"), ready: () => Boolean(traffic), done: showPlan });
}

function reportParts(report, exports) {
  const sections = report.sections.map((s) => el("section", {}, el("h2", { tabindex: "-1" }, s.heading), s.sentence ? el("p", { class: "lead" }, s.sentence) : "", s.items.length ? show(s.items) : "", s.code ? el("pre", {}, s.code) : ""));
  const heading = el("h2", { tabindex: "-1", class: "answer" }, report.title);
  const header = el("header", {}, heading, el("p", { class: "subtitle" }, report.subtitle), el("ul", { class: "headline" }, ...report.headline.map((line) => el("li", {}, line))), factList(report.facts));
  const files = el("nav", { class: "exports", "aria-label": "Files to take away" }, el("span", { class: "hint" }, "Take away"), ...exports.map(([href, title]) => el("a", { href, download: "" }, title)));
  const contents = sections.length > 3 ? el("nav", { class: "contents", "aria-label": "Parts of this answer" }, ...sections.map((part) => el("button", { type: "button", class: "quiet", onclick: () => arrive(part.querySelector("h2")) }, part.querySelector("h2").textContent))) : "";
  header.append(contents);
  return { heading, header, files, sections, basis: el("p", { class: "basis" }, report.provenance.map((line) => (/[.!?]$/.test(line) ? line : `${line}.`)).join(" ")) };
}

function arrive(heading) {
  heading.focus({ preventScroll: true });
  heading.scrollIntoView({ block: "start", behavior: "auto" });
  scrollBy(0, -80);
}

function showPlan(found) {
  const root = $("plan-result");
  forget(root);
  const made = reportParts(found.report, found.exports.map((e) => [`/api/plan/${planning}/export/${e.name}`, e.title]));
  made.heading.id = "answer";
  root.replaceChildren(made.header, made.files, made.sections[0], whatIf(found.whatif), ...made.sections.slice(1), made.basis);
  arrive(made.heading);
}

function whatIf(offer) {
  const answer = el("div", { class: "told" }), grid = el("div", { class: "grid" }), told = el("p", { class: "lead", role: "status" });
  const dials = [];
  const ratio = (i) => 2 ** (i / 8);
  const dial = (name, text, min, max, value, say, read) => {
    const out = el("output", {}, say(value));
    const input = el("input", { type: "range", id: `whatif-${name}`, min: String(min), max: String(max), step: "1", value: String(value), "aria-valuetext": say(value),
      oninput: () => { out.textContent = say(Number(input.value)); input.setAttribute("aria-valuetext", out.textContent); again(); } });
    dials.push([name, input, read, value]);
    return el("label", { class: "slider" }, el("span", {}, `${text} `, out), input);
  };
  const times = (i) => `${ratio(i) < 10 ? ratio(i).toFixed(2) : ratio(i).toFixed(1)}\u00d7`;
  const price = offer.usd_per_gpu_hour;
  const sliders = [
    dial("load", "Load", -16, Math.floor(8 * Math.log2(offer.most_load)), 0, times, ratio),
    dial("prompt", "Prompt length", -16, 24, 0, times, ratio),
    dial("replicas", "Replicas", 1, Math.max(8, 3 * offer.replicas), offer.replicas, String, (i) => i)];
  if (price) sliders.push(dial("price", "$ per GPU-hour", -16, 16, 0, (i) => `$${(price * ratio(i)).toFixed(2)}`, (i) => price * ratio(i)));
  let busy = false, dirty = false;
  async function again() {
    const started = performance.now();
    if (busy) { dirty = true; return; }
    busy = true;
    do {
      dirty = false;
      const query = new URLSearchParams(dials.filter(([, input, , from]) => Number(input.value) !== from).map(([name, input, read]) => [name, String(read(Number(input.value)))]));
      try {
        const found = await ask(`/api/plan/${planning}/whatif?${query}`);
        tellFacts(answer, found.facts);
        told.textContent = found.holds ? "Every objective holds." : "An objective is missed.";
        const rest = await update(grid, found.items);
        await rest();
        (window.whatifs ||= []).push(performance.now() - started);
      } catch (error) { told.textContent = error.message; }
    } while (dirty);
    busy = false;
  }
  setTimeout(again);
  return el("section", { id: "whatif" }, el("h2", {}, "What if"), el("p", { class: "lead" }, "Move a slider: the chosen fleet is simulated again, request by request."),
    el("div", { class: "panel whatif" }, ...sliders), told, answer, grid);
}

// Measure -----------------------------------------------------------------------------------------------------------

let measuring = null, measureEvents = null, fitEvents = null, run = null; // run: the one that is open
const SERVED = ["model", "gpu", "tp", "weights", "kv", "engine", "engine_version", "max_num_seqs", "max_num_batched_tokens"];

function startMeasure() {
  const { missing, install } = catalog.embedded;
  $("measure-embedded").disabled = missing.length > 0;
  $("embedded-note").hidden = missing.length === 0;
  $("embedded-note").textContent = `The small engine needs ${missing.join(", ")}; install with: ${install}`;
  const what = () => {
    const own = $("measure-embedded").checked;
    for (const id of ["measure-url", "measure-model"]) { $(id).disabled = own; $(id).closest("label").hidden = own; }
    $("measure-key-line").hidden = own;
    if (own) for (const [id, value] of [["measure-prompt", 64], ["measure-output", 32], ["measure-seconds", 8]]) $(id).value = value;
  };
  for (const radio of document.querySelectorAll("[name=measure-what]")) radio.addEventListener("change", what);
  options($("served-model"), modelGroups(), catalog.default.model);
  options($("served-gpu"), [["Here", [["this-machine", "this machine's processor"]]], ...gpuGroups()], catalog.default.gpu);
  $("measure-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const own = $("measure-embedded").checked;
      const users = $("measure-users").value.split(",").map((w) => Number(w.trim())).filter(Boolean);
      const { id } = await send("/api/measure", { url: own ? "" : $("measure-url").value, model: own ? "" : $("measure-model").value, embedded: own, concurrency: users, prompt: Number($("measure-prompt").value), output: Number($("measure-output").value), duration_s: Number($("measure-seconds").value), with_key: !own && $("measure-key").checked });
      history.replaceState(null, "", `/measure?job=${id}`);
      followMeasure(id);
    } catch (error) { problem("measure-problem", error); }
  });
  $("measure-cancel").addEventListener("click", () => { ask(`/api/measure/${measuring}`, { method: "DELETE" }); $("measure-cancel").disabled = true; });
  $("run-file").addEventListener("change", async (event) => {
    const file = event.target.files[0];
    event.target.value = "";
    if (!file) return;
    try {
      problem("measure-problem", null);
      const { name } = await ask(`/api/runs?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
      await tellLibrary();
      go(`/measure?run=${encodeURIComponent(name)}`);
    } catch (error) { problem("measure-problem", error); }
  });
  $("served-form").addEventListener("submit", (event) => { event.preventDefault(); predict(); });
  $("fit").addEventListener("click", fit);
  $("compare-form").addEventListener("submit", (event) => { event.preventDefault(); compareRuns(); });
  $("compare-run").addEventListener("change", levelsOfB);
}

async function openMeasure(query) {
  const { job } = Object.fromEntries(query);
  await tellLibrary();
  if (job && job !== measuring) followMeasure(job);
  const name = query.get("run");
  if (name && name !== run?.name) await openRun(name, query);
  if (!name && run) history.replaceState(null, "", runPath());
}

const missingEngine = () => catalog.embedded.missing;
const served = () => Object.fromEntries([...SERVED.map((f) => [f, $(`served-${f}`).value.trim()]).filter(([, v]) => v), ...($("served-leave_out_bound").checked ? [["leave_out_bound", "true"]] : [])]);
const runPath = (more = {}) => `/measure?${new URLSearchParams({ run: run.name, ...more })}`;

async function tellLibrary() {
  const { runs, folder } = await ask("/api/runs");
  $("library-note").textContent = runs.length || folder ? (folder ? `The record files in ${folder}.` : "Kept in memory until the server stops; gambrel ui --runs DIR keeps them in a folder.") : "None yet. What is measured here is kept in memory until the server stops; gambrel ui --runs DIR keeps it in a folder.";
  const row = (r) => el("tr", { class: r.name === run?.name ? "chosen" : null },
    el("td", {}, el("a", { href: `/measure?run=${encodeURIComponent(r.name)}` }, r.name.replace(/\.jsonl\.gz$/, ""))), el("td", { "data-column": "model" }, r.model), el("td", { "data-column": "measured" }, new Date(r.when).toLocaleString()),
    el("td", { class: "number", "data-column": "levels" }, String(r.levels)), el("td", {}, el("button", { type: "button", class: "quiet", "aria-label": `Delete ${r.name}`, onclick: () => deleteRun(r.name) }, "Delete")));
  const heads = ["run", "model", "measured", "levels", ""];
  $("library").replaceChildren(runs.length ? el("div", { class: "table" }, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Runs" }, el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((h) => (h ? el("th", { scope: "col", class: h === "levels" ? "number" : null }, h) : el("td", {}))))), el("tbody", {}, ...runs.map(row))))) : "");
  const others = runs.filter((r) => r.name !== run?.name);
  options($("compare-run"), [["", (others.length ? others : runs).map((r) => [r.name, r.name.replace(/\.jsonl\.gz$/, "")])]], "");
  $("comparing").hidden = !run || others.length === 0;
  if (!$("comparing").hidden) await levelsOfB();
}

async function deleteRun(name) {
  if (!confirm(`Delete ${name}? Its records are gone then.`)) return;
  try {
    await ask(`/api/runs/${encodeURIComponent(name)}`, { method: "DELETE" });
    if (run?.name === name) closeRun();
    await tellLibrary();
  } catch (error) { problem("measure-problem", error); }
}

function closeRun() {
  run = null;
  for (const id of ["measure-result", "predicted", "fit-result", "compare-result"]) { forget($(id)); $(id).replaceChildren(); }
  $("against").hidden = true;
  $("comparing").hidden = true;
  history.replaceState(null, "", "/measure");
}

function followMeasure(id) {
  measuring = id;
  measureEvents?.close();
  measureEvents = watch(`/api/measure/${encodeURIComponent(id)}`, { progress: $("measure-progress"), run: $("measure-run"), cancel: $("measure-cancel"), problemId: "measure-problem", result: null, ready: () => true, done: (found) => go(`/measure?run=${encodeURIComponent(found.run)}`) });
}

async function openRun(name, query) {
  try {
    problem("measure-problem", null);
    const found = await ask(`/api/runs/${encodeURIComponent(name)}`);
    closeRun();
    run = found;
    history.replaceState(null, "", `/measure?${query}`);
    const root = $("measure-result");
    const made = reportParts(found.report, found.exports.map((e) => [`/api/runs/${encodeURIComponent(name)}/export/${e.name}`, e.title]));
    root.replaceChildren(made.header, made.files, ...made.sections, made.basis);
    $("against").hidden = false;
    if (found.model) $("served-model").value = found.model;
    if (found.served === "SmolLM2-135M-Instruct" && missingEngine().length === 0) { // ours, most likely: how it was started here
      const own = { model: "embedded/SmolLM2-135M-Instruct", gpu: "this-machine", engine: "openvino", engine_version: "", max_num_seqs: String(found.users || 64), max_num_batched_tokens: "512" };
      for (const [field, value] of Object.entries(own)) $(`served-${field}`).value = value;
    }
    for (const field of SERVED) if (query.get(field)) $(`served-${field}`).value = query.get(field);
    $("served-leave_out_bound").checked = query.get("leave_out_bound") === "true";
    options($("compare-level-a"), [["", [["", "every level of both"], ...found.levels.map((l) => [l, l])]]], "");
    await tellLibrary();
    arrive(made.heading);
    if (query.get("gpu")) await predict();
    if (query.get("fit")) followFit(query.get("fit"));
    if (query.get("b")) { $("compare-run").value = query.get("b"); await levelsOfB(); await compareRuns(); }
  } catch (error) { problem("measure-problem", error); }
}

async function predict() {
  const root = $("predicted");
  try {
    problem("against-problem", null);
    const found = await ask(`/api/runs/${encodeURIComponent(run.name)}/predicted?${new URLSearchParams(served())}`);
    history.replaceState(null, "", runPath(served()));
    forget(root);
    root.replaceChildren(factList(found.facts), found.bound.length ? el("ul", { class: "warnings" }, el("li", {}, `The client, not the server, set the pace of ${found.bound.join(", ")}: these levels say nothing about the server, and no fit takes them.`)) : "", show(found.items), el("p", { class: "basis" }, found.basis));
  } catch (error) { forget(root); root.replaceChildren(); problem("against-problem", error); }
}

async function fit() {
  try {
    problem("against-problem", null);
    const asked = served();
    for (const field of ["tp", "max_num_seqs", "max_num_batched_tokens"]) asked[field] = Number(asked[field]);
    const { id } = await send("/api/fit", { ...asked, leave_out_bound: Boolean(asked.leave_out_bound), run: run.name });
    history.replaceState(null, "", runPath({ ...served(), fit: id }));
    followFit(id);
  } catch (error) { problem("against-problem", error); }
}

function followFit(id) {
  fitEvents?.close();
  $("fit-cancel").onclick = () => { ask(`/api/fit/${id}`, { method: "DELETE" }); $("fit-cancel").disabled = true; };
  fitEvents = watch(`/api/fit/${encodeURIComponent(id)}`, { progress: $("fit-progress"), run: $("fit"), cancel: $("fit-cancel"), problemId: "against-problem", result: $("fit-result"), ready: () => true, done: (found) => {
    const root = $("fit-result");
    forget(root);
    forget($("predicted"));
    $("predicted").replaceChildren(); // the fit's charts hold both lines
    const made = reportParts(found.report, found.exports.map((e) => [`/api/fit/${id}/export/${e.name}`, e.title]));
    made.files.append(el("a", { href: `/plan?fit=${id}`, class: "go" }, "Plan with these constants"));
    root.replaceChildren(made.header, made.files, ...made.sections, made.basis);
    arrive(made.heading);
  } });
}

async function levelsOfB() {
  const name = $("compare-run").value;
  if (!name) return;
  try {
    const { levels } = await ask(`/api/runs/${encodeURIComponent(name)}`);
    options($("compare-level-b"), [["", [["", "every level of both"], ...levels.map((l) => [l, l])]]], "");
  } catch (error) { problem("compare-problem", error); }
}

async function compareRuns() {
  const root = $("compare-result");
  try {
    problem("compare-problem", null);
    const asked = { a: run.name, b: $("compare-run").value, level_a: $("compare-level-a").value, level_b: $("compare-level-b").value };
    const found = await ask(`/api/compare?${new URLSearchParams(Object.entries(asked).filter(([, v]) => v))}`);
    history.replaceState(null, "", runPath({ b: asked.b }));
    root.replaceChildren(el("p", { class: "caption" }, `A is ${found.a}, B is ${found.b}. ${found.note}`), show(found.items));
  } catch (error) { root.replaceChildren(); problem("compare-problem", error); }
}

// Learn -------------------------------------------------------------------------------------------------------------

const DIALS = {
  batch: { text: "Batch", max: 80, value: slider.batch.value, index: slider.batch.index, say: (v) => `${count(v)} sequences` },
  context: { text: "Context", max: 80, value: slider.context.value, index: slider.context.index, say: (v) => `${count(v)} tokens` },
  step_ms: { text: "Step", min: 1, max: 100, value: (i) => i, index: (v) => v, say: (v) => `${v} ms` },
  busy: { text: "Busy", min: 5, max: 98, value: (i) => i, index: (v) => v, say: (v) => `${v} %` },
  cv: { text: "Spread of service times (CV)", max: 40, value: (i) => i, index: (v) => v, say: (v) => (v / 10).toFixed(1) },
};
let lessons = null;

async function openLearn(query, [slug]) {
  lessons ||= (await ask("/api/learn")).lessons;
  const name = lessons.some((l) => l.slug === slug) ? slug : lessons[0].slug;
  $("lesson-list").replaceChildren(...lessons.map((l) => el("a", { href: `/learn/${l.slug}`, "aria-current": l.slug === name ? "page" : null }, l.title)));
  await showLesson(name, query);
}

async function showLesson(slug, query) {
  const root = $("lesson");
  forget(root);
  let found;
  try { found = await ask(`/api/learn/${slug}?${query}`); } catch { found = await ask(`/api/learn/${slug}`); query = new URLSearchParams(); }
  const grid = el("div", { class: "grid wide" }), told = el("div", { class: "told" });
  let busy = false, dirty = false;
  async function again() {
    history.replaceState(null, "", `/learn/${slug}?${query}`);
    if (busy) { dirty = true; return; }
    busy = true;
    do {
      dirty = false;
      const next = await ask(`/api/learn/${slug}?${query}`);
      tellFacts(told, next.facts);
      await (await update(grid, next.items))();
    } while (dirty);
    busy = false;
  }
  const dials = Object.entries(found.dials).map(([name, value]) => {
    const dial = DIALS[name], out = el("output", {}, dial.say(value));
    const input = el("input", { type: "range", id: `dial-${name}`, min: String(dial.min || 0), max: String(dial.max), step: "1", value: String(dial.index(value)), "aria-valuetext": dial.say(value),
      oninput: () => { const v = dial.value(Number(input.value)); query.set(name, v); out.textContent = dial.say(v); input.setAttribute("aria-valuetext", out.textContent); again(); } });
    return el("label", { class: "slider" }, el("span", {}, `${dial.text} `, out), input);
  });
  const [first, ...rest] = found.paragraphs;
  const copy = el("button", { type: "button", class: "copy", onclick: async () => { await navigator.clipboard?.writeText(location.href); copy.textContent = "Copied"; setTimeout(() => { copy.textContent = "Copy the link to this plot"; }, 1500); } }, "Copy the link to this plot");
  root.replaceChildren(el("h2", {}, found.title), el("p", {}, first), el("p", { class: "formula" }, found.formula),
    el("div", { class: "panel whatif" }, ...dials), told, grid, ...rest.map((text) => el("p", {}, text)), copy);
  tellFacts(told, found.facts);
  await (await update(grid, found.items))();
}

// The views ----------------------------------------------------------------------------------------------------

const views = { explore: openExplore, traffic: openTraffic, plan: openPlan, measure: openMeasure, learn: openLearn };

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
startPlan();
startMeasure();
startTraffic();
open(new URL(location.href));
document.documentElement.dataset.ready = String(Math.round(performance.now()));
