"use strict";
// What all figures share: colours, formats, one pointer and one zoom.

const LIGHT = {
  ink: "#1b1f24", soft: "#5b6470", grid: "#e6e9ee", page: "#ffffff", bad: "#c62828",
  lines: ["#0072b2", "#d55e00", "#009e73", "#b0559a", "#8a6d00", "#3f8fc4", "#7a5230", "#5b6470"],
  stages: {
    DORMANT: "#e3e6ea", GERMINATED: "#a9d6a4", TRAINING: "#7fb2e0", BLENDING: "#f0c05a",
    SHADOWING: "#d9b38c", PROBATIONARY: "#c39bd3", FOSSILIZED: "#4caf7d", CULLED: "#e08a6d",
    EMBARGOED: "#b9bec6", RESETTING: "#cfd3d8", TERMINATED: "#9a9fa6",
  },
};
const DARK = {
  ink: "#e6e9ed", soft: "#9aa4b0", grid: "#272d35", page: "#14171b", bad: "#ff6b60",
  lines: ["#58b0ea", "#ff9a52", "#3fcf9f", "#e08ccb", "#e0c14a", "#9cc9ee", "#c69a72", "#9aa4b0"],
  stages: {
    DORMANT: "#2b313a", GERMINATED: "#3f7a48", TRAINING: "#2f6ea6", BLENDING: "#a67c1d",
    SHADOWING: "#7d6040", PROBATIONARY: "#7d549a", FOSSILIZED: "#23855a", CULLED: "#a4543a",
    EMBARGOED: "#4a515c", RESETTING: "#3b424c", TERMINATED: "#5a616b",
  },
};
const ACTIONS = {
  GERMINATE: ["G", "#2e9e5b"], ADVANCE: ["A", "#3a86c8"], FOSSILIZE: ["F", "#8e5bb5"],
  CULL: ["C", "#d2691e"], OPTIMIZER: ["O", "#0f8b8d"], CIRCUIT_BREAKER: ["B", "#8a6d00"],
  PAUSE: ["P", "#b07d00"], ROLLBACK: ["R", "#d32f2f"], FAILED: ["!", "#d32f2f"],
};
const OTHER_ACTION = ["•", "#5b6470"];
const badgeOf = (action) => ACTIONS[action] || OTHER_ACTION;

const dark = window.matchMedia("(prefers-color-scheme: dark)");
let theme = dark.matches ? DARK : LIGHT;
const plots = [];
const zoomed = new WeakMap();

function words(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(3);
  return String(Number(value.toPrecision(4)));
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function key(into, entries) {
  const list = element("div", undefined, "key");
  for (const [name, colour] of entries) {
    const entry = element("span");
    const swatch = element("i");
    swatch.style.background = colour;
    entry.append(swatch, name);
    list.append(entry);
  }
  into.append(list);
}

function axis(more) {
  return {
    stroke: theme.soft, grid: { stroke: theme.grid, width: 1 },
    ticks: { stroke: theme.grid, width: 1 }, font: "12px system-ui, sans-serif", ...more,
  };
}

// A logarithmic axis where values are positive and far apart.
function spreads(series) {
  let least = Infinity, most = 0;
  for (const values of series) {
    for (const value of values) {
      if (value === null) continue;
      if (value <= 0) return false;
      least = Math.min(least, value);
      most = Math.max(most, value);
    }
  }
  return most / least > 50;
}

// Figures of one group are zoomed together.
function zoomTogether(group) {
  return (u, name) => {
    if (name !== "x" || zoomed.get(u)) return;
    const { min, max } = u.scales.x;
    for (const other of plots) {
      if (other === u || other.group !== group) continue;
      if (other.scales.x.min === min && other.scales.x.max === max) continue;
      zoomed.set(other, true);
      other.setScale("x", { min, max });
      zoomed.set(other, false);
    }
  };
}

// Shows near the pointer what `describe(u)` says of the place.
function tip(describe) {
  let box, inside = false;
  return {
    hooks: {
      init: (u) => {
        box = element("div", undefined, "tip");
        u.root.parentNode.append(box);
        u.over.addEventListener("mouseenter", () => { inside = true; });
        u.over.addEventListener("mouseleave", () => { inside = false; box.style.display = "none"; });
      },
      setCursor: (u) => {
        const { left, top } = u.cursor;
        const text = inside && left >= 0 ? describe(u) : "";
        if (!text) { box.style.display = "none"; return; }
        box.textContent = text;
        box.style.display = "block";
        const width = box.offsetWidth, place = left + u.over.offsetLeft;
        const flip = place + width + 24 > u.root.clientWidth;
        box.style.left = `${flip ? Math.max(place - width - 14, 0) : place + 14}px`;
        box.style.top = `${top + u.over.offsetTop + 12}px`;
      },
    },
  };
}

function clipped(u, draw) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  draw(ctx, bbox);
  ctx.restore();
}

// One figure. `spec`: height, data, series, y (axis), ySize, scale, group, unit, describe, hooks,
// padding, legend, extent.
function figure(into, spec) {
  const [low, high] = spec.extent;
  const u = new uPlot({
    width: Math.max(into.clientWidth, 320), height: spec.height, padding: spec.padding,
    scales: { x: { time: false, range: (u, min, max) => (min === null ? [low, high] : [min, max]) },
              y: spec.scale || {} },
    series: [{ label: spec.unit }, ...spec.series],
    axes: [axis({ label: spec.unit, size: 28, labelSize: 18, labelFont: "12px system-ui, sans-serif",
                  values: (u, ticks) => ticks.map((one) => one.toLocaleString("en")) }),
           axis({ size: spec.ySize || 64, values: (u, ticks) => ticks.map((one) => (one === null ? "" : words(one))),
                  ...spec.y })],
    cursor: { sync: { key: spec.group, setSeries: false }, drag: { x: true, y: false }, y: false },
    legend: { show: spec.legend !== false, live: false },
    plugins: [tip(spec.describe)],
    hooks: { ...spec.hooks, setScale: [zoomTogether(spec.group)] },
  }, spec.data, into);
  u.group = spec.group;
  u.over.addEventListener("dblclick", () => u.setScale("x", { min: low, max: high }));
  plots.push(u);
  return u;
}
