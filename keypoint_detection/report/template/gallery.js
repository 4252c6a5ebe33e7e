// The gallery: one image at a time with its keypoints, drawn and counted at the thresholds of the sliders.

const view = { image: 0, zoom: 1, x: 0, y: 0, score: 0.5, own: true, distance: report.distance, scope: 0 };
let order = report.images.map((_, i) => i);
const OUTCOMES = { found: "#00a37a", missed: "#f0b400", wrong: "#e8553a" };
const current = () => report.images[view.image];
const thresholdsNow = () => view.own ? report.thresholds : report.thresholds.map(() => view.score);
const LEGEND = [["found", "true keypoint and its detection"], ["missed", "missed keypoint"], ["wrong", "false positive"]];

// The outline of a mark of radius r at (x, y). Its shape says the outcome, so that it can be read without colour.
function outline(shape, [x, y], r) {
  if (shape === "circle") return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`;
  if (shape === "diamond") return `M${x - 1.3 * r} ${y}L${x} ${y - 1.3 * r}L${x + 1.3 * r} ${y}L${x} ${y + 1.3 * r}Z`;
  return `M${x - r} ${y - r}L${x + r} ${y + r}M${x - r} ${y + r}L${x + r} ${y - r}`;
}

function mark(path, colour, width, title, filled = false) {
  const stroke = (paint, w) => vector("path", { d: path, fill: filled ? paint : "none", stroke: paint, "stroke-width": w, "stroke-linecap": "round" });
  const group = vector("g", {}, stroke("#000b", 2.4 * width), stroke(colour, width));
  if (title) group.append(vector("title", {}, title));
  return group;
}

// Marks of one image as {channel, outcome, kind, xy, score, distance, text}, plus what to draw.
function marksOf(channels) {
  const marks = [];
  channels.forEach((channel, c) => {
    if (channel === null || !state.visible[c]) return;
    for (const truth of channel.truths) {
      const kind = truth.found ? "true keypoint" : truth.taken ? "true keypoint, claimed by a wrong detection" : "miss";
      marks.push({ c, outcome: truth.found ? "found" : "missed", truth: true, kind, xy: truth.xy, score: NaN, distance: NaN });
    }
    for (const d of channel.detections) {
      const kind = d.kind === WRONG_CHANNEL && d.truth ? `wrong channel (${report.channels[d.truth.channel]})` : KIND_NAMES[d.kind];
      marks.push({ c, outcome: d.kind === TRUE ? "found" : "wrong", truth: false, kind, xy: d.xy, score: d.score, distance: d.distance,
        to: d.kind === TRUE || d.kind === IMPRECISE ? d.truth.xy : null });
    }
  });
  return marks;
}

function drawMarks(channels) {
  const layer = vector("g", { id: "marks-layer" });
  if (!byId("marks").checked) return layer;
  const box = byId("picture").getBoundingClientRect(), unit = current().width / view.zoom / Math.max(box.width, 1);
  const byOutcome = byId("colours").value === "outcome";
  const drawn = marksOf(channels).map((m) => {
    const colour = byOutcome ? OUTCOMES[m.outcome] : colourOf(m.c), pen = 1.8 * unit;
    const text = `${report.channels[m.c]}: ${m.kind}${m.truth ? "" : `, score ${number(m.score)}`}${m.distance >= 0 ? `, ${number(m.distance, 2)} px off` : ""}`;
    const group = vector("g", { "data-outcome": m.outcome, "data-channel": m.c });
    if (m.to) group.append(mark(`M${m.xy[0]} ${m.xy[1]}L${m.to[0]} ${m.to[1]}`, colour, pen));
    if (m.truth) group.append(mark(outline(m.outcome === "found" ? "circle" : "diamond", m.xy, 7 * unit), colour, pen, text));
    else if (m.outcome === "found") group.append(mark(outline("circle", m.xy, 1.4 * unit), colour, pen, text, true));
    else group.append(mark(outline("cross", m.xy, 4.5 * unit), colour, pen, text));
    return group;
  });
  layer.append(...drawn);
  return layer;
}

function drawPicture() {
  const { width, height, source } = current(), picture = byId("picture");
  const w = width / view.zoom, h = height / view.zoom;
  view.x = Math.min(Math.max(view.x, 0), width - w);
  view.y = Math.min(Math.max(view.y, 0), height - h);
  picture.setAttribute("viewBox", `${view.x} ${view.y} ${w} ${h}`);
  // As large as fits the width and two thirds of the window, so that the sliders stay in sight.
  picture.style.aspectRatio = `${width} / ${height}`;
  picture.style.maxWidth = `calc(min(72vh, 720px) * ${width / height})`;
  const layers = [vector("rect", { width, height, fill: "#777" })];
  const smooth = view.zoom * byId("picture").clientWidth / width < 6 ? "auto" : "pixelated";
  if (source) layers.push(vector("image", { href: source, width, height, preserveAspectRatio: "none", style: `image-rendering:${smooth}` }));
  const heat = vector("image", { id: "heat-layer", preserveAspectRatio: "none", opacity: byId("opacity").value });
  picture.replaceChildren(...layers, heat);
  drawHeatmap(heat);
  const channels = classify(current(), view.distance, thresholdsNow());
  picture.append(drawMarks(channels));
  return channels;
}

// The heatmaps of an image come as one gray PNG, channels stacked vertically; their maximum is shown, in colour.
function drawHeatmap(layer) {
  const image = current(), shown = visibleChannels();
  byId("heat-controls").hidden = !report.images.some((i) => i.heatmaps);
  if (!byId("heat").checked || !image.heatmaps) return;
  const [left, top, right, bottom] = image.heatmaps.extent;
  for (const [name, value] of Object.entries({ x: left, y: top, width: right - left, height: bottom - top })) layer.setAttribute(name, value);
  const picture = new Image();
  picture.onload = () => layer.setAttribute("href", colouredMaximum(picture, report.channels.length, shown));
  picture.src = image.heatmaps.source;
}

function colouredMaximum(picture, count, shown) {
  const width = picture.naturalWidth, height = picture.naturalHeight / count;
  const canvas = element("canvas", { width, height: picture.naturalHeight }), context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const gray = context.getImageData(0, 0, width, picture.naturalHeight).data, size = width * height;
  const result = new ImageData(width, height);
  for (let i = 0; i < size; i += 1) {
    let value = 0;
    for (const c of shown) value = Math.max(value, gray[4 * (c * size + i)]);
    const t = value / 255; // from violet over red and yellow to white, and from clear to opaque
    result.data.set([255 * Math.min(1, 0.35 + 1.6 * t), 255 * Math.min(1, Math.max(0, 1.7 * t - 0.45)), 255 * Math.max(0.55 - 1.5 * t, 4 * t - 3, 0), 255 * Math.min(1, 1.6 * t)], 4 * i);
  }
  canvas.height = height;
  context.putImageData(result, 0, 0);
  return canvas.toDataURL();
}

function drawCounts(channels) {
  const here = countChannels(channels), shown = visibleChannels();
  const everywhere = view.scope === 0 ? here : report.images.concat(report.others)
    .map((image) => countChannels(classify(image, view.distance, thresholdsNow())))
    .reduce((sum, counts) => counts.map((count, c) => addCounts([count, sum[c]])));
  const row = (name, c) => [name, c.tp, c.fp, c.fn, precisionOf(c), recallOf(c), f1Of(c)].map((v, i) => i === 0 ? v : number(v, i > 3 ? 2 : 0));
  const total = addCounts(shown.map((c) => everywhere[c])), rows = [row("channels shown", total)];
  rows[0].total = true;
  rows.push(...report.channels.map((_, c) => row(channelToggle(c), everywhere[c])));
  const focused = document.activeElement.dataset ? document.activeElement.dataset.channel : undefined;
  const inTable = byId("count-table").contains(document.activeElement) && focused !== undefined;
  byId("count-table").replaceChildren(table(["Channel", "TP", "FP", "FN", "Prec.", "Recall", "F1"], rows));
  if (inTable) byId("count-table").querySelector(`[data-channel="${focused}"]`).focus();
  const names = KIND_NAMES.slice(1).map((name, i) => `${total.kinds[i + 1]} ${name}`);
  byId("kinds").textContent = `Errors shown: ${[`${total.missed} miss`, ...names].join(", ")}.`;
  const sum = addCounts(shown.map((c) => here[c])), off = ratio(sum.distance, sum.tp);
  byId("counts").textContent = `${sum.tp} found, ${sum.fn} missed, ${sum.fp} false`
    + `${Number.isNaN(off) ? "" : `; ${number(off, 2)} px off on average`}`;
  drawList(channels);
}

function drawList(channels) {
  if (!byId("list").open) return;
  const rows = marksOf(channels).map((m) => [report.channels[m.c], m.kind, number(m.xy[0], 1), number(m.xy[1], 1), number(m.score), number(m.distance, 2)]);
  byId("keypoint-table").replaceChildren(table(["Channel", "What", "x", "y", "Score", "Distance"], rows));
}

let scheduled = false;
function drawGallery() { // at most once per frame, however fast a slider moves
  if (scheduled || !report.images.length) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const { width, height } = byId("picture").getBoundingClientRect(), channels = drawPicture();
    const after = byId("picture").getBoundingClientRect();
    if (after.width !== width || after.height !== height) byId("marks-layer").replaceWith(drawMarks(channels));
    drawCounts(channels);
  });
}

function select(image, focus = false) {
  Object.assign(view, { image, zoom: 1, x: 0, y: 0 });
  const place = order.indexOf(image) + 1;
  byId("image-name").textContent = `${current().name} (${place} of ${order.length})`;
  for (const button of byId("strip").querySelectorAll("button")) {
    const chosen = Number(button.dataset.image) === image;
    button.tabIndex = chosen ? 0 : -1;
    button.setAttribute("aria-current", chosen);
    if (!chosen) continue;
    if (focus) button.focus({ preventScroll: true });
    const strip = byId("strip"); // scrolls only the strip, not the page
    strip.scrollTo({ left: button.offsetLeft - strip.offsetLeft - strip.clientWidth / 2 + button.clientWidth / 2 });
  }
  drawGallery();
}

function move(step) {
  const place = order.indexOf(view.image) + step;
  if (place >= 0 && place < order.length) select(order[place], byId("strip").contains(document.activeElement));
}

// The error of an image: misses plus false positives; ties are broken by the mean distance of its true detections.
function sortImages() {
  const sums = report.images.map((image) => addCounts(countChannels(classify(image, view.distance, thresholdsNow())).filter((_, c) => state.visible[c])));
  const off = (s) => ratio(s.distance, s.tp) || 0;
  const badness = { worst: (s) => s.fn + s.fp + (off(s) / (view.distance * (1 + 1e-9)) || 0), misses: (s) => s.fn, false: (s) => s.fp, distance: off }[byId("order").value];
  order = report.images.map((_, i) => i);
  if (badness) order.sort((a, b) => badness(sums[b]) - badness(sums[a]));
  else order.sort((a, b) => report.images[a].name.localeCompare(report.images[b].name));
  drawStrip(sums);
}

function drawStrip(sums) {
  byId("strip").replaceChildren(...order.map((i) => {
    const image = report.images[i], errors = sums[i].fn + sums[i].fp;
    const picture = image.source ? element("img", { src: image.source, alt: "", loading: "lazy", width: 88, height: 66 }) : element("span", { class: "blank" });
    return element("li", {}, element("button", { type: "button", "data-image": i, onclick: () => select(i, true),
      "aria-label": `${image.name}, ${errors} errors` }, picture, element("span", {}, errors ? `${errors} error${errors > 1 ? "s" : ""}` : "no error")));
  }));
  if (order.length) select(order[0]);
}

function zoomBy(factor, at = [0.5, 0.5]) {
  const { width, height } = current(), before = view.zoom;
  view.zoom = Math.min(Math.max(before * factor, 1), 16);
  view.x += at[0] * (width / before - width / view.zoom);
  view.y += at[1] * (height / before - height / view.zoom);
  drawGallery();
}
