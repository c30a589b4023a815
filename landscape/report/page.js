"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const CONFIG = { modeBarButtonsToRemove: ["sendChartToCloud"], displaylogo: false, responsive: true };
const COLOURS = ["#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#0072B2"];
const DECADES = 6, MAP = "Cividis", STEPS = 240;
const SIGNED = [[0, "#2d004b"], [0.25, "#8073ac"], [0.5, "#f7f7f7"], [0.75, "#e08214"], [1, "#7f3b08"]];
const FONT = { family: "system-ui, 'Segoe UI', 'Liberation Sans', 'DejaVu Sans', sans-serif", size: 13 };
const get = id => document.getElementById(id);
const state = { surface: 0, quantity: "risk", log: false, common: true, paths: true, line: null, clicks: [] };

/* ---- data ---- */
function floats(text) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}
for (const s of DATA.surfaces) {
  s.a = Array.from(floats(s.a));
  s.b = Array.from(floats(s.b));
  for (const name of Object.keys(s.values)) s.values[name] = floats(s.values[name]);
}
const show = (v, digits = 4) => Number.isFinite(v) ? String(Number(v.toPrecision(digits))).replace("-", "−") : "not finite";
const here = () => DATA.surfaces[state.surface];
const quantities = () => Object.keys(here().values);
const values = (s = here()) => s.values[state.quantity];
const worded = (s, q) => q === "risk" ? s.label : q.replaceAll("_", " ");
const label = s => worded(s, state.quantity);

/* ---- scales: what is drawn for a value, and which values name the ticks ---- */
function extremes(arrays) {
  let low = Infinity, high = -Infinity, positive = Infinity;
  for (const array of arrays) for (const v of array) if (Number.isFinite(v)) {
    if (v < low) low = v;
    if (v > high) high = v;
    if (v > 0 && v < positive) positive = v;
  }
  return { low, high, positive };
}
function steps(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough)), size = power * [1, 2, 5, 10].find(m => m * power >= rough);
  return Array.from({ length: 12 }, (_, k) => size * (Math.ceil(low / size - 1e-9) + k)).filter(t => t <= high + 1e-9 * size);
}
function scale() {
  const all = DATA.surfaces.filter(s => state.quantity in s.values);
  let { low, high, positive } = extremes((state.common ? all : [here()]).map(s => s.values[state.quantity]));
  const signed = state.quantity !== "risk" && low < 0 && high > 0;
  if (signed) [low, high] = [-Math.max(-low, high), Math.max(-low, high)];
  if (!state.log || !(high > 0) || signed) {
    const top = high > low ? high : low + Math.max(Math.abs(low), 1) * 1e-6;
    const ticks = steps(low, top);
    return { of: v => Number.isFinite(v) ? v : null, range: [low, top], ticks: { tickvals: ticks, ticktext: ticks.map(t => show(t)) }, log: false, map: signed ? SIGNED : MAP };
  }
  const floor = Math.max(positive, high * 10 ** -DECADES);
  const range = [Math.log10(floor), Math.max(Math.log10(high), Math.log10(floor) + 1e-6)];
  const width = range[1] - range[0], fine = width < 2 ? [1, 2, 5] : [1];
  const ticks = width < 1 ? steps(...range.map(e => 10 ** e)).map(v => [Math.log10(v), v]) : [];
  if (width >= 1) for (let e = Math.floor(range[0]); e <= range[1]; e++) for (const m of fine) {
    const at = e + Math.log10(m);
    if (at >= range[0] - 1e-9 && at <= range[1] + 1e-9) ticks.push([at, m * 10 ** e]);
  }
  return { of: v => Number.isFinite(v) ? Math.log10(Math.max(v, floor)) : null, range, log: true, map: MAP,
    ticks: { tickvals: ticks.map(t => t[0]), ticktext: ticks.map(t => show(t[1], 2)) } };
}
function table(s, f) {
  return s.b.map((_, j) => s.a.map((_, i) => f(i, j)));
}
function ranks(s, array) {
  const sorted = Float32Array.from(array.filter(Number.isFinite)).sort();
  const rank = v => { let l = 0, h = sorted.length; while (l < h) { const m = (l + h) >> 1; if (sorted[m] < v) l = m + 1; else h = m; } return l / sorted.length; };
  return table(s, (i, j) => { const v = array[i * s.b.length + j]; return Number.isFinite(v) ? rank(v) : null; });
}

/* ---- geometry on the plane ---- */
function distance(s, p, q) {
  const [x, y] = [p[0] - q[0], p[1] - q[1]], g = s.gram;
  return Math.sqrt(g ? g[0][0] * x * x + 2 * g[0][1] * x * y + g[1][1] * y * y : x * x + y * y);
}
function nearest(s, p) {
  let best = [Infinity, 0];
  s.anchors.forEach((q, n) => { const d = distance(s, p, q); if (d < best[0]) best = [d, n + 1]; });
  return best;
}
function bracket(axis, x) {
  let i = 0;
  while (i < axis.length - 2 && axis[i + 1] <= x) i++;
  return [i, (x - axis[i]) / (axis[i + 1] - axis[i])];
}
function between(s, array, [x, y]) {
  const eps = 1e-6, [wa, wb] = [s.a.at(-1) - s.a[0], s.b.at(-1) - s.b[0]];
  if (x < s.a[0] - eps * wa || x > s.a.at(-1) + eps * wa || y < s.b[0] - eps * wb || y > s.b.at(-1) + eps * wb) return NaN;
  const [i, t] = bracket(s.a, x), [j, u] = bracket(s.b, y), B = s.b.length, at = (m, n) => array[(i + m) * B + j + n];
  return (1 - t) * ((1 - u) * at(0, 0) + u * at(0, 1)) + t * ((1 - u) * at(1, 0) + u * at(1, 1));
}
function hover(s) {
  const array = values(s), words = label(s), unit = s.isometric || s.gram ? "distance" : "coordinate distance";
  return table(s, (i, j) => {
    const near = s.anchors.length ? nearest(s, [s.a[i], s.b[j]]) : null;
    const last = near ? `<br>${unit} to the nearest solution (${near[1]}) ${show(near[0])}` : "";
    return `a ${show(s.a[i])}  b ${show(s.b[j])}<br>${words} ${show(array[i * s.b.length + j], 6)}${last}`;
  });
}
const along = ([p, q], n = STEPS) => Array.from({ length: n + 1 }, (_, k) => [0, 1].map(c => p[c] + (q[c] - p[c]) * k / n));
const closed = s => s.anchors.length > 2 ? [...s.anchors, s.anchors[0]] : s.anchors;
const named = words => ({ text: words, standoff: 6 });
const ink = (s, sc) => {
  const mean = s.anchors.reduce((t, p) => t + sc.of(between(s, values(s), p)), 0) / s.anchors.length;
  return sc.map === SIGNED || mean > sc.range[0] + 0.55 * (sc.range[1] - sc.range[0]) ? "#000" : "#fff";
};
const column = (points, c) => points.map(p => p[c]);

/* ---- lines to cut along ---- */
function lines(s) {
  const found = [], [a, b] = [s.a, s.b], n = s.anchors.length;
  for (let i = 0; i < n; i++) for (let j = i + 1; j < n; j++) found.push([`solution ${i + 1} to ${j + 1}`, [s.anchors[i], s.anchors[j]]]);
  const c = n ? [0, 1].map(k => s.anchors.reduce((t, p) => t + p[k], 0) / n) : [(a[0] + a.at(-1)) / 2, (b[0] + b.at(-1)) / 2];
  found.push(["along a through the centre", [[a[0], c[1]], [a.at(-1), c[1]]]]);
  found.push(["along b through the centre", [[c[0], b[0]], [c[0], b.at(-1)]]]);
  return found;
}
function chosen() {
  if (Array.isArray(state.line)) return state.line;
  const all = lines(here());
  return (all.find(l => l[0] === state.line) || all[0])[1];
}

/* ---- pictures ---- */
const base = extra => ({ margin: { l: 62, r: 14, t: 30, b: 58 }, modebar: { bgcolor: "rgba(0,0,0,0)" }, font: FONT, paper_bgcolor: "#fff", uirevision: "keep", showlegend: false, ...extra });
function bar(s, sc) {
  return { title: { text: label(s), side: "right" }, thickness: 14, len: 0.82, outlinewidth: 0, ...sc.ticks };
}
function lifted(s, sc, points) {
  const array = values(s), raise = (sc.range[1] - sc.range[0]) * 0.006;
  return points.map(p => { const z = sc.of(between(s, array, p)); return z === null ? null : z + raise; });
}
function curve3d(s, sc, points, line, extra = {}) {
  return { type: "scatter3d", mode: "lines", x: column(points, 0), y: column(points, 1), z: lifted(s, sc, points), line, hoverinfo: "skip", ...extra };
}
function solid(s, sc, text) {
  const array = values(s), B = s.b.length, z = table(s, (i, j) => sc.of(array[i * B + j]));
  const traces = [{ type: "surface", x: s.a, y: s.b, z, text, hoverinfo: "text", colorscale: sc.map, cmin: sc.range[0], cmax: sc.range[1], showscale: false,
    contours: { z: { show: true, usecolormap: true, project: { z: true }, start: sc.range[0], end: sc.range[1], size: (sc.range[1] - sc.range[0]) / 16, width: 1 } },
    lighting: { ambient: 0.75, diffuse: 0.55, specular: 0.08, roughness: 0.8 } }];
  if (s.anchors.length) {
    const edges = closed(s), walk = edges.slice(1).flatMap((q, k) => along([edges[k], q], 40));
    if (walk.length) traces.push(curve3d(s, sc, walk, { color: "#000", width: 3, dash: "dash" }));
    traces.push({ type: "scatter3d", mode: "markers+text", x: column(s.anchors, 0), y: column(s.anchors, 1), z: lifted(s, sc, s.anchors), text: s.anchors.map((_, n) => String(n + 1)),
      textposition: "top center", textfont: { size: 15, color: ink(s, sc) }, marker: { size: 5, color: "#fff", line: { color: "#000", width: 2 } }, hoverinfo: "skip" });
  }
  traces.push(curve3d(s, sc, along(chosen()), { color: "#D55E00", width: 5 }));
  if (state.paths) s.paths.forEach((p, n) => traces.push(curve3d(s, sc, p.points, { color: COLOURS[(n + 1) % 6], width: 5 })));
  const [wa, wb] = [s.a.at(-1) - s.a[0], s.b.at(-1) - s.b[0]], most = Math.max(wa, wb), ratio = s.isometric ? [wa / most, wb / most] : [1, 1];
  const pad = 0.3 * (sc.range[1] - sc.range[0]);
  const axis = text => ({ title: { text }, nticks: 6, backgroundcolor: "#f6f8fa", gridcolor: "#d7dce1", showbackground: true });
  Plotly.react("solid", traces, base({ margin: { l: 0, r: 0, t: 0, b: 0 }, scene: { xaxis: axis("a"), yaxis: axis("b"),
    zaxis: { ...axis(""), range: [sc.range[0] - pad, sc.range[1] + 0.04 * pad], ...sc.ticks }, aspectmode: "manual",
    aspectratio: { x: 1.15 * ratio[0], y: 1.15 * ratio[1], z: 0.8 }, camera: { eye: { x: -1.25, y: -1.7, z: 1.0 }, center: { x: 0.02, y: 0, z: -0.13 } }, uirevision: "keep" } }), CONFIG);
}
function flat(s, sc, text) {
  const array = values(s), B = s.b.length, z = table(s, (i, j) => sc.of(array[i * B + j]));
  const traces = [{ type: "heatmap", x: s.a, y: s.b, z, text, hoverinfo: "text", zsmooth: "best", colorscale: sc.map, zmin: sc.range[0], zmax: sc.range[1], colorbar: bar(s, sc) },
    { type: "contour", x: s.a, y: s.b, z: ranks(s, array), hoverinfo: "skip", showscale: false, showlegend: false, autocontour: false, connectgaps: false,
      contours: { coloring: "none", start: 1 / 13, end: 12 / 13, size: 1 / 13 }, line: { color: "rgba(255,255,255,0.65)", width: 0.8 } }];
  const line = (points, style, extra = {}) => ({ type: "scatter", mode: "lines", x: column(points, 0), y: column(points, 1), line: style, hoverinfo: "skip", showlegend: false, ...extra });
  if (s.anchors.length) {
    traces.push(line(closed(s), { color: "#000", width: 3 }), line(closed(s), { color: "#fff", width: 1.5, dash: "dash" }));
    traces.push({ type: "scatter", mode: "markers+text", showlegend: false, x: column(s.anchors, 0), y: column(s.anchors, 1), text: s.anchors.map((_, n) => `<b>${n + 1}</b>`), textposition: "top center", textfont: { color: ink(s, sc), size: 14 },
      marker: { size: 9, color: "#fff", line: { color: "#000", width: 1.5 } }, hoverinfo: "text", hovertext: s.anchors.map((p, n) => `solution ${n + 1}<br>loss ${show(s.anchor_risk[n], 6)}`) });
  }
  if (state.paths) s.paths.forEach((p, n) => traces.push(line(p.points, { color: "#fff", width: 4 }), line(p.points, { color: COLOURS[(n + 1) % 6], width: 2 }, { mode: "lines+markers",
    name: p.name, showlegend: true, marker: { size: 4 }, hoverinfo: "text", text: p.points.map((q, k) => `${p.name}, record ${k}<br>${q.length > 2 ? `${show(q[2])} out of the plane` : "distance out of the plane not recorded"}`) })));
  traces.push(line(chosen(), { color: "#D55E00", width: 2.5 }));
  const kind = s.isometric ? " (distance)" : " (coordinate)";
  Plotly.react("flat", traces, base({ plot_bgcolor: "#d9d9d9", hovermode: "closest", showlegend: state.paths && s.paths.length > 0, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, xaxis: { title: named("a" + kind), range: [s.a[0], s.a.at(-1)], constrain: "domain", zeroline: false, showgrid: false },
    yaxis: { title: named("b" + kind), range: [s.b[0], s.b.at(-1)], constrain: "domain", zeroline: false, showgrid: false, ...(s.isometric ? { scaleanchor: "x", scaleratio: 1 } : {}) },
    uirevision: state.surface }), CONFIG);
}
function cut(s, sc) {
  const ends = chosen(), points = along(ends), array = values(s), at = points.map(p => between(s, array, p)), length = distance(s, ...ends);
  const t = points.map((_, k) => length * k / STEPS), straight = t.map((_, k) => at[0] + (at[STEPS] - at[0]) * k / STEPS);
  const text = points.map((p, k) => `a ${show(p[0])}  b ${show(p[1])}<br>${label(s)} ${show(at[k], 6)}`);
  const log = sc.log;
  const safe = v => Number.isFinite(v) && (!log || v > 0) ? v : null;
  Plotly.react("cut", [{ type: "scatter", mode: "lines", x: t, y: at.map(safe), text, hoverinfo: "text", line: { color: "#D55E00", width: 2.5 } },
    { type: "scatter", mode: "lines", x: t, y: straight.map(safe), hoverinfo: "skip", line: { color: "#59636e", width: 1, dash: "dot" } }],
  base({ xaxis: { title: named(s.isometric || s.gram ? "distance along the line" : "coordinate distance along the line"), zeroline: false }, yaxis: { title: named(label(s)), type: log ? "log" : "linear", exponentformat: "power", zeroline: false }, uirevision: null }), CONFIG);
  const excess = at.map((v, k) => v - straight[k]), top = Math.max(...excess.filter(Number.isFinite));
  get("barrier").textContent = `Highest point above the straight line between the ends: ${show(top)} (${label(s)}), interpolated from the grid. ` +
    "This is a straight line in weight space; a curved path between the same ends may have no barrier.";
  for (const [n, id] of ["a0", "b0", "a1", "b1"].entries()) if (document.activeElement !== get(id)) get(id).value = Number(ends[n >> 1][n & 1].toPrecision(5));
}
function away(s) {
  const drawn = state.paths ? s.paths.filter(p => p.points.length && p.points[0].length > 2) : [];
  const hidden = get("away").hidden;
  get("away").hidden = !drawn.length;
  if (hidden !== get("away").hidden && get("cut").data) Plotly.Plots.resize("cut");
  if (!drawn.length) return;
  Plotly.react("away", drawn.map((p, n) => ({ type: "scatter", mode: "lines", name: p.name, x: p.points.map((_, k) => k), y: p.points.map(q => q[2]), line: { color: COLOURS[(n + 1) % 6], width: 2 } })),
    base({ showlegend: true, legend: { x: 1, xanchor: "right", y: 0.9 }, xaxis: { title: named("record of the trajectory") }, yaxis: { title: named("distance out of the plane"), rangemode: "tozero" }, uirevision: null }), CONFIG);
}
function trend() {
  const t = DATA.trend, x = t.curves.flatMap(c => c.x);
  get("trend").hidden = !t.keys.length || !t.curves.some(c => c.x.length > 1);
  if (get("trend").hidden) return;
  const wide = Math.min(...x) > 0 && Math.max(...x) / Math.min(...x) >= 8, ticks = [...new Set(x)].sort((p, q) => p - q);
  const traces = t.curves.map((c, n) => {
    const m = c.points[get("measure").value], gap = (p, side) => p[side] === null ? 0 : Math.abs(p[side] - p[0]);
    return { type: "scatter", mode: "lines+markers", name: c.name, x: c.x, y: m.map(p => p[0]), line: { color: COLOURS[(n + 5) % 6] },
      error_y: { type: "data", symmetric: false, array: m.map(p => gap(p, 2)), arrayminus: m.map(p => gap(p, 1)) } };
  });
  Plotly.react("curve", traces, base({ showlegend: t.curves.length > 1, xaxis: { title: named("branches I"), type: wide ? "log" : "linear", tickvals: ticks, ticktext: ticks.map(String) },
    yaxis: { rangemode: "tozero" }, uirevision: null }), CONFIG);
}

/* ---- controls ---- */
const options = (select, names, value) => select.replaceChildren(...names.map(([v, text]) => new Option(text, v, false, String(v) === String(value))));
function draw() {
  const s = here();
  if (!quantities().includes(state.quantity)) state.quantity = "risk";
  const sc = scale(), text = hover(s);
  get("surface").value = get("slider").value = state.surface;
  options(get("quantity"), quantities().map(q => [q, worded(s, q)]), state.quantity);
  options(get("line"), [...lines(s).map(l => [l[0], l[0]]), ["own", "own line"]], Array.isArray(state.line) ? "own" : state.line);
  get("scale").value = state.log ? "log" : "linear";
  get("common").checked = state.common;
  get("tracks").hidden = !s.paths.length;
  get("caption").textContent = s.caption + (state.log && !sc.log ? " Not all values are positive, so the scale is linear." : "");
  get("problem").hidden = true;
  try { solid(s, sc, text); } catch (error) { complain(error); }
  flat(s, sc, text);
  cut(s, sc);
  away(s);
  document.querySelectorAll("[data-of]").forEach(e => { e.hidden = Number(e.dataset.of) !== state.surface; });
  history.replaceState(null, "", "#" + new URLSearchParams({ surface: state.surface, quantity: state.quantity, scale: state.log ? "log" : "linear", common: Number(state.common) }));
  document.body.dataset.drawn = s.name;
}
function complain(error) {
  get("problem").hidden = false;
  get("problem").textContent = `The picture could not be drawn: ${error.message}. Three dimensions need WebGL.`;
}
function restore() {
  const wanted = new URLSearchParams(location.hash.slice(1)), n = Number(wanted.get("surface"));
  if (Number.isInteger(n) && n >= 0 && n < DATA.surfaces.length) state.surface = n;
  if (wanted.has("quantity")) state.quantity = wanted.get("quantity");
  if (wanted.has("scale")) state.log = wanted.get("scale") === "log";
  if (wanted.has("common")) state.common = wanted.get("common") === "1";
}
const on = (id, event, change) => get(id).addEventListener(event, e => { change(e.target); draw(); });
function start() {
  const many = DATA.surfaces.length;
  options(get("surface"), DATA.surfaces.map((s, n) => [n, s.name]), 0);
  get("slider").max = many - 1;
  get("slide").hidden = get("same").hidden = many < 2;
  const jump = t => { state.surface = Number(t.value); if (Array.isArray(state.line)) state.line = null; };
  on("surface", "change", jump);
  on("slider", "input", jump);
  on("quantity", "change", t => { state.quantity = t.value; });
  on("scale", "change", t => { state.log = t.value === "log"; });
  on("common", "change", t => { state.common = t.checked; });
  on("paths", "change", t => { state.paths = t.checked; });
  on("line", "change", t => { state.line = t.value === "own" ? chosen() : t.value; });
  for (const id of ["a0", "b0", "a1", "b1"]) on(id, "change", () => { const [a0, b0, a1, b1] = ["a0", "b0", "a1", "b1"].map(i => Number(get(i).value)); state.line = [[a0, b0], [a1, b1]]; });
  options(get("measure"), DATA.trend.keys.map((k, n) => [n, k]), 0);
  get("measure").addEventListener("change", trend);
  window.addEventListener("hashchange", () => { restore(); draw(); });
  restore();
  draw();
  trend();
  get("flat").on("plotly_click", event => {
    const p = event.points[0];
    state.clicks.push([p.x, p.y]);
    if (state.clicks.length === 2) { state.line = state.clicks; state.clicks = []; draw(); }
  });
}
start();
