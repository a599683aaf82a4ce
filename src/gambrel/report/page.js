"use strict";
// Draws every chart of the page from its spec, in the colours of the reader's system, and again when those change.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const specs = read("specs");
  const themes = read("themes");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const boxes = [...document.querySelectorAll(".chart")];
  const views = new Map();
  const narrow = (box) => box.clientWidth < 460;

  async function draw(box, paper) {
    const spec = { ...specs[box.dataset.chart] };
    delete spec.title;
    spec.width = "container";
    spec.autosize = { type: "fit-x", contains: "padding", resize: true };
    const config = structuredClone(themes[dark.matches && !paper ? "dark" : "light"]);
    if (narrow(box)) config.legend.columns = 2;
    const result = await vegaEmbed(box, spec, {
      actions: false, ast: true, config, defaultStyle: false, mode: "vega-lite",
      renderer: paper ? "svg" : "canvas", tooltip: { disableDefaultStyle: true },
    });
    views.get(box)?.finalize();
    views.set(box, result);
    box.dataset.narrow = narrow(box);
    await result.view.resize().runAsync();
  }

  async function drawAll(paper = false) {
    await Promise.all(boxes.map((box) => draw(box, paper)));
    document.documentElement.dataset.drawn = "true";
  }

  let timer = 0;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => boxes.filter((b) => String(narrow(b)) !== b.dataset.narrow).forEach((b) => draw(b)), 150);
  });
  dark.addEventListener("change", () => drawAll());
  addEventListener("beforeprint", () => drawAll(true));
  addEventListener("afterprint", () => drawAll());
  drawAll();
})();
