"use strict";
// Draws every chart of the page from its spec, in the colours of the reader's system, and again when those change.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const specs = read("specs");
  const themes = read("themes");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const boxes = [...document.querySelectorAll(".chart")];
  const views = new Map();

  // Legends do not wrap by themselves: as many columns as fit, from the length of their words.
  function legendColumns(spec, width) {
    const scales = (spec.layer || [spec]).map((layer) => layer.encoding?.color?.scale?.domain).filter(Boolean);
    const words = (scales[0] || []).map((word) => 7.2 * word.length + 46);
    if (words.reduce((a, b) => a + b, 0) < width - 60) return 0;
    return Math.max(1, Math.floor((width - 40) / Math.max(...words)));
  }

  async function draw(box, paper) {
    const spec = { ...specs[box.dataset.chart] };
    delete spec.title;
    spec.width = paper ? 420 : "container"; // on paper the drawing scales with its column
    spec.autosize = { type: "fit-x", contains: "padding", resize: true };
    const config = structuredClone(themes[dark.matches && !paper ? "dark" : "light"]);
    config.legend.columns = legendColumns(spec, paper ? 420 : box.clientWidth);
    const result = await vegaEmbed(box, spec, {
      actions: false, ast: true, config, defaultStyle: false, mode: "vega-lite",
      renderer: paper ? "svg" : "canvas", tooltip: { disableDefaultStyle: true },
    });
    views.get(box)?.finalize();
    views.set(box, result);
    box.dataset.columns = config.legend.columns;
    await result.view.resize().runAsync();
  }

  async function drawAll(paper = false) {
    await Promise.all(boxes.map((box) => draw(box, paper)));
    document.documentElement.dataset.drawn = "true";
  }

  let timer = 0;
  addEventListener("resize", () => {
    clearTimeout(timer);
    const outgrown = (b) => String(legendColumns(specs[b.dataset.chart], b.clientWidth)) !== b.dataset.columns;
    timer = setTimeout(() => boxes.filter(outgrown).forEach((b) => draw(b)), 150);
  });
  dark.addEventListener("change", () => drawAll());
  addEventListener("beforeprint", () => drawAll(true));
  addEventListener("afterprint", () => drawAll());
  drawAll();
})();
