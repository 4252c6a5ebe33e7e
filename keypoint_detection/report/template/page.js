// The sections above the gallery: key figures, table, training curves, quality charts and the errors by kind.

const report = JSON.parse(document.getElementById("report-data").textContent);

// Points come as flat lists of float32 values in their shortest form: [x, y, x, y, ...] -> [[x, y], ...].
function unpack(flat, size) {
  if (flat === null) return null;
  return Array.from({ length: flat.length / size }, (_, i) => flat.slice(size * i, size * (i + 1)).map(Math.fround));
}

for (const image of report.images.concat(report.others)) {
  image.truths = image.truths.map((flat) => unpack(flat, 2));
  image.detections = image.detections.map((flat) => unpack(flat, 3));
}

const byId = (id) => document.getElementById(id);
const state = {
  visible: report.channels.map(() => true), // per channel; charts and gallery share it
  at: report.distances.indexOf(report.distance), // which threshold distance the charts show
};
const painters = []; // drawn again when a channel, the distance or the width changes

const colourOf = (channel) => report.colours[channel]; // as in pictures, but darker if it is light
// For lines that are not channels; colour-blind readers can tell these colours apart (Okabe and Ito).
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5fd0", "#8a7a3b"];
const dashOf = (channel) => ["none", "7 3", "2 3", "9 3 2 3"][Math.floor(channel / PALETTE.length) % 4];
const visibleChannels = () => report.channels.map((_, c) => c).filter((c) => state.visible[c]);
const sumOver = (items, valueOf) => items.reduce((sum, item) => sum + valueOf(item), 0);
const mean = (values) => ratio(values.reduce((a, b) => a + b, 0), values.length);

function paint() {
  for (const painter of painters) painter();
}

function setVisible(channels, shown) {
  for (const c of channels) state.visible[c] = shown;
  for (const box of document.querySelectorAll("input[data-channel]")) box.checked = state.visible[box.dataset.channel];
  paint();
}

// A long name, which wraps at its underscores if there is no room for it, or else anywhere.
const breakable = (name) => element("span", { class: "name" }, ...name.split("_").flatMap((part, i) => i ? ["_", element("wbr"), part] : [part]));

function channelToggle(channel) {
  const box = element("input", { type: "checkbox", "data-channel": channel, onchange: () => setVisible([channel], box.checked) });
  box.checked = state.visible[channel];
  return element("label", { class: "channel" }, box,
    element("span", { class: "swatch", style: `background:${colourOf(channel)}` }), breakable(report.channels[channel]));
}

// Radio buttons that look like one control; choose(index) is called on a change.
function choice(host, name, labels, selected, choose) {
  labels.forEach((text, index) => {
    const radio = element("input", { type: "radio", name, onchange: () => choose(index) });
    radio.checked = index === selected;
    host.append(element("label", {}, radio, element("span", {}, text)));
  });
}

// rows of cells; a cell is text, a number, null, or a node. The first cell of a row is its header.
function table(columns, rows) {
  const cell = (value) => value instanceof Node ? value : typeof value === "string" ? value : number(value);
  return element("table", {},
    element("thead", {}, element("tr", {}, ...columns.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.map((row) => element("tr", row.total ? { class: "total" } : {}, ...row.map((value, i) =>
      element(i === 0 ? "th" : "td", i === 0 ? { scope: "row" } : {}, cell(value)))))));
}

function numbersTable({ columns, rows }) {
  const cells = rows.map(([name, count, ...values]) => [breakable(name), String(count), ...values]);
  cells[0].total = true;
  return table(columns, cells);
}

function drawSummary() {
  byId("subtitle").textContent = report.subtitle;
  byId("figures").append(...report.figures.map(([name, value, hint]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value), element("dd", { class: "hint" }, hint))));
  byId("table").append(numbersTable(report.table));
  byId("table-note").textContent = report.table.note;
  byId("test").hidden = report.test === null;
  if (report.test !== null) {
    byId("test-title").textContent = report.test.title;
    byId("test-table").append(numbersTable(report.test));
  }
  byId("info").append(...report.info.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  const sections = [...document.querySelectorAll("main > section:not([hidden])")].filter((s) => s.id !== "summary");
  byId("navigation").append(...sections.map((s) =>
    element("a", { href: `#${s.id}` }, s.querySelector("h2").textContent)));
}

function drawTraining() {
  byId("training").hidden = report.curves.length === 0;
  for (const chart of report.curves) {
    const host = element("div", { class: "chart" });
    const colour = (s) => s.channel === null ? PALETTE[s.colour % PALETTE.length] : colourOf(s.channel);
    const legend = element("ul", { class: "legend" }, ...chart.series.map((s) => element("li", {},
      vector("svg", { viewBox: "0 0 24 8", class: "key" }, vector("line", { x1: 0, x2: 24, y1: 4, y2: 4, class: "line", stroke: colour(s), "stroke-dasharray": s.dash })), breakable(s.name))));
    byId("curves").append(element("figure", { class: "card" }, element("figcaption", {}, element("h3", {}, chart.title)), host, legend));
    painters.push(() => {
      const series = chart.series.filter((s) => s.channel === null || state.visible[s.channel])
        .map((s) => ({ name: s.name, x: s.steps, y: s.values, colour: colour(s), dash: s.dash, marks: s.steps.length === 1 ? [0] : [] }));
      const values = series.flatMap((s) => s.y).filter((v) => v !== null);
      const steps = chart.series.flatMap((s) => [s.steps[0], s.steps.at(-1)]); // all steps would be too many arguments
      const x = [Math.min(...steps), Math.max(...steps)];
      if (x[0] === x[1]) x[1] += 1;
      lineChart(host, { x, y: chart.unit ? [0, 1] : span(values, chart.log), log: chart.log && values.length > 0,
        xLabel: report.curves_x, yLabel: chart.axis, label: `${chart.title} over ${report.curves_x}` }, series);
    });
  }
}

function span(values, log) {
  if (!values.length) return [0, 1];
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  if (log) return [low / 1.1, high * 1.1];
  return [Math.min(low, 0), high > Math.min(low, 0) ? high * 1.05 : 1];
}

// The points of a channel's precision-recall curve, and the last of them whose score reaches the stored threshold.
function curveOf(channel) {
  const curve = report.quality[state.at].curves[channel];
  const points = curve.score.map((score, i) => ({ score, precision: curve.precision[i], recall: curve.recall[i] }));
  for (const p of points) p.f1 = ratio(2 * p.precision * p.recall, p.precision + p.recall) || 0;
  return { points, mark: points.findLastIndex((p) => p.score >= report.thresholds[channel]) };
}

const lineOf = (c, points, marks) => ({ name: report.channels[c], colour: colourOf(c), dash: dashOf(c), x: points.map((p) => p.x), y: points.map((p) => p.y), extra: points.map((p) => p.text), marks });
const qualityText = (p) => `precision ${number(p.precision)}  recall ${number(p.recall)}  F1 ${number(p.f1)}`;

function precisionRecallLine(channel) {
  const { points, mark } = curveOf(channel);
  const shown = points.map((p) => ({ x: p.recall, y: p.precision, text: `score ${number(p.score)}  ${qualityText(p)}` }));
  return lineOf(channel, shown, mark < 0 ? [] : [mark]);
}

// F1 changes only where the threshold passes a score, so it is drawn as steps from 1, where nothing counts, down to 0.
function f1Line(channel) {
  const { points, mark } = curveOf(channel), threshold = report.thresholds[channel], shown = [];
  if (!points.length) return lineOf(channel, [], []);
  let dot = null;
  [{ score: 1, f1: 0, precision: NaN, recall: 0 }, ...points].forEach((p, i) => {
    const low = i < points.length ? points[i].score : 0;
    const add = (x) => shown.push({ x, y: p.f1, text: `threshold ${number(low)} to ${number(p.score)}  ${qualityText(p)}` });
    add(p.score);
    if (i === mark + 1) dot = shown.push({ ...shown.at(-1), x: Math.min(Math.max(threshold, 0), 1) }) - 1;
    add(low);
  });
  return lineOf(channel, shown, [dot]);
}

function drawQuality() {
  choice(byId("distances"), "at", report.distances.map((d) => `${trim(d)} px`), state.at, (index) => { state.at = index; paint(); });
  byId("chips").append(...report.channels.map((_, c) => channelToggle(c)));
  for (const button of document.querySelectorAll("button[data-show]")) {
    button.addEventListener("click", () => setVisible(report.channels.keys(), button.dataset.show === "all"));
  }
  const unit = { x: [0, 1], y: [0, 1] };
  painters.push(() => {
    const within = `within ${trim(report.distances[state.at])} px`;
    lineChart(byId("precision-recall"), { ...unit, xLabel: "recall", yLabel: "precision", label: `Precision over recall per channel, ${within}` },
      visibleChannels().map(precisionRecallLine));
    lineChart(byId("f1"), { ...unit, xLabel: "score threshold", yLabel: "F1", label: `F1 over the score threshold per channel, ${within}` },
      visibleChannels().map(f1Line));
    drawHistogram();
    drawCalibration(within);
    drawTaxonomy(within);
  });
}

function drawHistogram() {
  const { edges, counts } = report.histogram, channels = visibleChannels();
  const totals = edges.slice(1).map((_, i) => sumOver(channels, (c) => counts[c][i]));
  const all = totals.reduce((a, b) => a + b, 0), limit = edges[edges.length - 1];
  barChart(byId("histogram"), { x: [0, limit], y: [0, Math.max(...totals, 1) * 1.08], xLabel: "distance to the true keypoint (px)", yLabel: "detections",
    label: `Histogram of the distances of ${all} true detections` },
    totals.map((value, i) => ({ from: edges[i], to: edges[i + 1], value, text: `${trim(edges[i])} to ${trim(edges[i + 1])} px: ${value} detections` })));
  byId("histogram-note").textContent = `${all} detections of any score that match a true keypoint within ${trim(limit)} px.`;
}

function drawCalibration(within) {
  const { bins } = report.quality[state.at], channels = visibleChannels(), length = bins[0].count.length, width = 1 / length;
  const bars = Array.from({ length }, (_, i) => {
    const count = sumOver(channels, (c) => bins[c].count[i]), score = ratio(sumOver(channels, (c) => bins[c].score[i]), count);
    const value = ratio(sumOver(channels, (c) => bins[c].true[i]), count), from = i * width, to = from + width;
    return { from, to, value, count, score, label: count ? String(count) : "",
      text: count ? `score ${number(from, 1)} to ${number(to, 1)}: ${number(100 * value, 1)} % of ${count} true, mean score ${number(score)}` : "no detection" };
  });
  const all = sumOver(bars, (bar) => bar.count);
  const error = ratio(sumOver(bars.filter((bar) => bar.count), (bar) => bar.count * Math.abs(bar.value - bar.score)), all);
  barChart(byId("calibration"), { x: [0, 1], y: [0, 1], xLabel: "score", yLabel: "share that is true", diagonal: true, headroom: 22,
    label: `Share of true detections per bin of scores, ${within}; expected calibration error ${number(error)}` }, bars);
  byId("calibration-note").textContent = "Share of true detections per bin of scores; the number of detections is above each bar. On the dashed line, a score is a probability. "
    + `Expected calibration error: ${number(error)}.`;
}

function drawTaxonomy(within) {
  const errors = report.quality[state.at].errors, channels = visibleChannels();
  const rows = errors.map((row) => ({ ...row, total: sumOver(channels, (c) => row.count[c]),
    gain: mean(channels.map((c) => row.gain[c]).filter((gain) => gain !== null)) }));
  const most = Math.max(...rows.map((row) => row.gain || 0), 1e-9);
  const all = rows.reduce((sum, row) => sum + row.total, 0);
  byId("taxonomy").replaceChildren(table(["Error", "Count", "Share", "AP gain"], rows.map((row) => [
    element("span", {}, row.name, element("span", { class: "meaning" }, row.meaning)), String(row.total), all ? `${number(100 * row.total / all, 1)} %` : "–",
    element("span", { class: "gain" }, element("span", { class: "gain-bar", style: `width:${Math.max(0, 6 * (row.gain || 0) / most)}rem` }), `${row.gain > 0 ? "+" : ""}${number(row.gain)}`)])));
  byId("taxonomy-note").textContent = `Counts are at the score thresholds, summed over the channels shown, with d ${within.replace("within", "=")}. `
    + "AP gain is how much mean AP, over all scores, would rise if all errors of this kind were fixed and the others stayed; "
    + "gains do not add up, because one error can hide another (after TIDE, Bolya et al. 2020).";
}

byId("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
});
