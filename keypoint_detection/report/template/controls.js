// What the reader touches in the gallery: sliders, keys and pointer. Starts the page at the end.

function setScore(value, own = false) {
  if (!Number.isFinite(value)) return;
  view.score = Math.min(Math.max(value, 0), 1);
  view.own = own;
  byId("own").checked = own;
  byId("score").value = view.score;
  if (document.activeElement !== byId("score-number")) byId("score-number").value = trim(Number(view.score.toFixed(3)));
  drawGallery();
}

function setDistance(value) {
  if (!Number.isFinite(value) || value < 0) return;
  view.distance = value;
  byId("distance").value = value;
  if (document.activeElement !== byId("distance-number")) byId("distance-number").value = trim(value);
  drawGallery();
}

function connectSliders() {
  const top = Math.max(...report.distances) * 2;
  byId("distance").max = top;
  byId("distance").step = top > 100 ? 1 : 0.1;
  for (const id of ["score", "score-number"]) byId(id).addEventListener("input", (event) => setScore(event.target.valueAsNumber));
  for (const id of ["distance", "distance-number"]) byId(id).addEventListener("input", (event) => setDistance(event.target.valueAsNumber));
  byId("own").addEventListener("change", () => setScore(view.score, byId("own").checked));
  for (const id of ["heat", "marks", "colours"]) byId(id).addEventListener("change", drawGallery);
  byId("opacity").addEventListener("input", () => { byId("heat").checked = true; drawGallery(); });
  byId("list").addEventListener("toggle", drawGallery);
  byId("order").addEventListener("change", sortImages);
  byId("sort").addEventListener("click", sortImages);
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  byId("zoom-in").addEventListener("click", () => zoomBy(1.5));
  byId("zoom-out").addEventListener("click", () => zoomBy(1 / 1.5));
  const everywhere = report.images.length + report.others.length;
  choice(byId("scope"), "scope", ["this image", `all ${everywhere} images`], view.scope, (index) => { view.scope = index; drawGallery(); });
}

function connectKeys() {
  const toggle = (id) => { byId(id).checked = !byId(id).checked; drawGallery(); };
  byId("gallery").addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const arrows = { ArrowRight: () => move(1), ArrowLeft: () => move(-1), Home: () => select(order[0], true), End: () => select(order[order.length - 1], true) };
    const letters = { "+": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), 0: () => zoomBy(0), h: () => toggle("heat"), k: () => toggle("marks") };
    // Single letters act only on the picture itself, so that they never surprise someone elsewhere on the page.
    const action = arrows[event.key] || (byId("stage").contains(event.target) ? letters[event.key] : undefined);
    if (!action) return;
    event.preventDefault();
    action();
  });
}

function connectPointer() {
  const picture = byId("picture");
  let last = null;
  picture.addEventListener("pointerdown", (event) => {
    if (view.zoom === 1) return;
    last = [event.clientX, event.clientY];
    picture.setPointerCapture(event.pointerId);
  });
  picture.addEventListener("pointermove", (event) => {
    if (last === null) return;
    const scale = current().width / view.zoom / picture.clientWidth;
    view.x -= (event.clientX - last[0]) * scale;
    view.y -= (event.clientY - last[1]) * scale;
    last = [event.clientX, event.clientY];
    drawGallery();
  });
  for (const end of ["pointerup", "pointercancel"]) picture.addEventListener(end, () => { last = null; });
  const place = (event) => {
    const box = picture.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  picture.addEventListener("dblclick", (event) => zoomBy(2, place(event)));
  picture.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoomBy(event.deltaY < 0 ? 1.25 : 0.8, place(event));
  }, { passive: false });
}

function drawLegend() {
  const symbols = { found: [["circle", 7], ["circle", 1.6]], missed: [["diamond", 7]], wrong: [["cross", 5]] };
  byId("legend").append(...LEGEND.map(([outcome, text]) => element("li", {},
    vector("svg", { viewBox: "-12 -12 24 24" }, ...symbols[outcome].map(([shape, r]) => mark(outline(shape, [0, 0], r), OUTCOMES[outcome], 2, null, r < 2))), text)));
}

function start() {
  drawTraining();
  drawSummary();
  drawQuality();
  painters.push(drawGallery);
  byId("gallery-note").textContent = report.gallery_note;
  byId("gallery").querySelector(".viewer").hidden = report.images.length === 0;
  drawLegend();
  connectSliders();
  connectKeys();
  connectPointer();
  setScore(mean(report.thresholds), true);
  setDistance(report.distance);
  sortImages();
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (entry.contentRect.width !== width) { width = entry.contentRect.width; paint(); }
  }).observe(document.querySelector("main"));
}

start();
