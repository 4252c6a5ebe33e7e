// Small charts in SVG. A chart is drawn at the width of its host and drawn again when that changes.

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

function vector(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function number(value, digits = 3) {
  return value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits);
}

const trim = (value) => String(Number(value.toPrecision(6)));

function ticksBetween(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) ticks.push(i * step);
  return ticks;
}

function logTicks(low, high) {
  for (const parts of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8]]) { // the fewest that give three ticks
    const ticks = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p += 1) ticks.push(...parts.map((part) => part * 10 ** p));
    const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
    if (inside.length >= 3) return inside;
  }
  return [low, high];
}

// Draws axes and grid, and returns {root, x, y, area}: x and y map values to pixels. options: x and y [low, high],
// xLabel, yLabel, log (the y axis), label (what a screen reader says).
function chartFrame(host, options) {
  const width = Math.max(host.clientWidth, 240), height = options.height || 260;
  const yTicks = options.log ? logTicks(...options.y) : ticksBetween(...options.y, 5);
  const yTexts = yTicks.map((tick) => trim(Number(tick.toPrecision(2))));
  const area = { left: 34 + 7 * Math.max(...yTexts.map((text) => text.length)), top: options.headroom || 10, right: width - 12, bottom: height - 42 };
  const root = vector("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": options.label });
  const across = (value) => area.left + (area.right - area.left) * (value - options.x[0]) / (options.x[1] - options.x[0]);
  const level = options.log ? Math.log10 : (v) => v, [low, high] = options.y.map(level);
  const up = (value) => area.bottom - (area.bottom - area.top) * (level(value) - low) / (high - low);
  yTicks.forEach((tick, i) => {
    root.append(vector("line", { class: "grid", x1: area.left, x2: area.right, y1: up(tick), y2: up(tick) }),
      vector("text", { class: "tick", x: area.left - 6, y: up(tick) + 4, "text-anchor": "end" }, yTexts[i]));
  });
  for (const tick of ticksBetween(...options.x, width < 420 ? 5 : 8)) {
    root.append(vector("line", { class: "grid", x1: across(tick), x2: across(tick), y1: area.top, y2: area.bottom }),
      vector("text", { class: "tick", x: across(tick), y: area.bottom + 16, "text-anchor": "middle" }, trim(tick)));
  }
  const middle = (area.top + area.bottom) / 2;
  root.append(
    vector("text", { class: "axis", x: (area.left + area.right) / 2, y: height - 6, "text-anchor": "middle" }, options.xLabel),
    vector("text", { class: "axis", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, options.yLabel));
  host.replaceChildren(root);
  return { root, x: across, y: up, area };
}

// series: [{name, colour, dash, x: [...], y: [...], extra: [...] (text per sample), marks: [sample indices]}]
function lineChart(host, options, series) {
  const frame = chartFrame(host, options);
  if (options.diagonal) frame.root.append(diagonal(frame, options));
  const usable = (s, i) => s.y[i] !== null && s.x[i] !== null;
  const lines = series.map((s) => {
    let path = "", pen = "M";
    s.x.forEach((x, i) => {
      if (!usable(s, i)) { pen = "M"; return; }
      path += `${pen}${frame.x(x).toFixed(1)} ${frame.y(s.y[i]).toFixed(1)}`;
      pen = "L";
    });
    const line = vector("path", { class: "line", d: path, stroke: s.colour, "stroke-dasharray": s.dash || "none" });
    frame.root.append(line);
    for (const i of s.marks || []) {
      if (usable(s, i)) frame.root.append(vector("circle", { cx: frame.x(s.x[i]), cy: frame.y(s.y[i]), r: 4, class: "dot", fill: s.colour }));
    }
    return line;
  });
  if (!series.some((s) => s.x.length)) frame.root.append(emptyNote(frame));
  pointAt(host, frame, (px, py) => {
    let best = null;
    series.forEach((s, index) => s.x.forEach((x, i) => {
      if (!usable(s, i)) return;
      const away = Math.hypot(frame.x(x) - px, frame.y(s.y[i]) - py);
      if (best === null || away < best.away) best = { away, index, i };
    }));
    lines.forEach((line, index) => line.classList.toggle("strong", best !== null && index === best.index));
    if (best === null) return null;
    const s = series[best.index];
    const text = s.extra ? s.extra[best.i] : `${trim(s.x[best.i])}: ${number(s.y[best.i], 4)}`;
    return { x: frame.x(s.x[best.i]), y: frame.y(s.y[best.i]), text: `${s.name}  ${text}` };
  });
}

// bars: [{from, to, value, text}]; values of the y axis
function barChart(host, options, bars) {
  const frame = chartFrame(host, options);
  for (const bar of bars) {
    if (!(bar.value > 0)) continue;
    const x = frame.x(bar.from), y = frame.y(bar.value);
    frame.root.append(vector("rect", { class: "bar", x: x + 0.5, y, width: Math.max(frame.x(bar.to) - x - 1, 1), height: frame.area.bottom - y }));
  }
  if (options.diagonal) frame.root.append(diagonal(frame, options));
  for (const bar of bars.filter((b) => b.label)) {
    const x = (frame.x(bar.from) + frame.x(bar.to)) / 2, y = frame.y(bar.value || 0) - 4;
    frame.root.append(vector("text", { class: "tick count", x, y, "text-anchor": "middle" }, bar.label));
  }
  if (!bars.some((b) => b.value > 0)) frame.root.append(emptyNote(frame));
  pointAt(host, frame, (px) => {
    const bar = bars.find((b) => px >= frame.x(b.from) && px < frame.x(b.to));
    return bar ? { x: (frame.x(bar.from) + frame.x(bar.to)) / 2, y: frame.y(bar.value || 0), text: bar.text } : null;
  });
}

const diagonal = (frame, options) => vector("line", { class: "diagonal", x1: frame.x(options.x[0]), y1: frame.y(options.y[0]),
  x2: frame.x(options.x[1]), y2: frame.y(options.y[1]) });

const emptyNote = (frame) => vector("text", { class: "axis", x: (frame.area.left + frame.area.right) / 2,
  y: (frame.area.top + frame.area.bottom) / 2, "text-anchor": "middle" }, "nothing to show");

// Shows what is under the pointer: find(x, y) in pixels of the chart -> {x, y, text} or null.
function pointAt(host, frame, find) {
  const dot = vector("circle", { r: 5, class: "pointer", visibility: "hidden" });
  const tip = element("div", { class: "tip", hidden: true });
  frame.root.append(dot);
  host.append(tip);
  const hide = () => { dot.setAttribute("visibility", "hidden"); tip.hidden = true; };
  const show = (event) => {
    const box = frame.root.getBoundingClientRect();
    const found = find(event.clientX - box.left, event.clientY - box.top);
    if (found === null) { hide(); return; }
    dot.setAttribute("cx", found.x);
    dot.setAttribute("cy", found.y);
    dot.setAttribute("visibility", "visible");
    tip.textContent = found.text;
    tip.hidden = false;
    tip.style.left = `${Math.min(Math.max(found.x - tip.offsetWidth / 2, 0), box.width - tip.offsetWidth)}px`;
    tip.style.top = `${found.y > 50 ? found.y - tip.offsetHeight - 10 : found.y + 12}px`;
  };
  frame.root.addEventListener("pointermove", show);
  frame.root.addEventListener("pointerdown", show);
  frame.root.addEventListener("pointerleave", () => { hide(); for (const l of host.querySelectorAll(".strong")) l.classList.remove("strong"); });
}
