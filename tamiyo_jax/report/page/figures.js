"use strict";
// The figures of one run, and those that compare several.

const LETTER = 13, ROWS = 2; // the letters of the decisions, in rows above the figure

const STEPPED = uPlot.paths.stepped({ align: 1 }); // a value holds until the next decision

function place(run, u) {
  return `${run.unit} ${words(Math.round(u.posToVal(u.cursor.left, "x")))}`;
}

function valuesAt(u, labels, index) {
  if (index === null || index === undefined) return [];
  return labels.map((label, i) => `${label}  ${words(u.data[i + 1][index])}`);
}

// The decisions within a few pixels of the pointer, as text.
function decisionsNear(run, u) {
  const made = run.decisions, from = u.posToVal(u.cursor.left - 6, "x");
  const to = u.posToVal(u.cursor.left + 6, "x"), lines = [];
  let at = firstAtLeast(made.x, from), more = 0;
  for (; at < made.x.length && made.x[at] <= to; at++) {
    if (lines.length >= 4) { more++; continue; }
    const text = (column) => made.texts[made[column][at]];
    const what = text("command") || text("action");
    const shadow = text("mode") === "shadow" ? "would: " : "";
    lines.push(`${run.unit} ${words(made.x[at])}: ${shadow}${text("action")} – ${what}\n${text("why")}`);
  }
  if (more) lines.push(`and ${more} more`);
  return lines;
}

function firstAtLeast(ascending, value) {
  let low = 0, high = ascending.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle] < value) low = middle + 1; else high = middle;
  }
  return low;
}

function drawBroken(run) {
  return (u) => clipped(u, (ctx, bbox) => {
    ctx.fillStyle = theme.bad;
    ctx.globalAlpha = 0.25;
    for (const [from, to] of run.broken) {
      const left = u.valToPos(from, "x", true);
      const width = Math.max(u.valToPos(to, "x", true) - left, 3 * devicePixelRatio);
      ctx.fillRect(left - devicePixelRatio, bbox.top, width, bbox.height);
    }
  });
}

// A thin line for every decision and its letter above: in the lowest row that has room, if any.
function drawDecisions(run) {
  return (u) => {
    const { ctx, bbox } = u, made = run.decisions, px = devicePixelRatio;
    ctx.save();
    ctx.font = `600 ${11 * px}px system-ui, sans-serif`;
    ctx.textAlign = "center";
    ctx.textBaseline = "bottom";
    ctx.lineWidth = px;
    let drawn = -Infinity;
    const lettered = new Array(ROWS).fill(-Infinity);
    for (let i = firstAtLeast(made.x, u.scales.x.min); i < made.x.length; i++) {
      if (made.x[i] > u.scales.x.max) break;
      const x = Math.round(u.valToPos(made.x[i], "x", true));
      const [letter, colour] = badgeOf(made.texts[made.action[i]]);
      if (x > drawn) {
        ctx.globalAlpha = 0.45;
        ctx.strokeStyle = colour;
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
        drawn = x;
      }
      const row = lettered.findIndex((end) => x >= end + 10 * px);
      if (row >= 0) {
        ctx.globalAlpha = 1;
        ctx.fillStyle = colour;
        ctx.fillText(letter, x, bbox.top - (2 + row * LETTER) * px);
        lettered[row] = x;
      }
    }
    ctx.restore();
  };
}

function drawLines(run, into, name, options) {
  const lines = run.lines[name], log = options.log || spreads(lines.series);
  const series = log ? lines.series.map((one) => one.map((v) => (v > 0 ? v : null))) : lines.series;
  const few = lines.x.length < 60;
  figure(into, {
    height: options.height || 190, group: run.group, unit: run.unit, ySize: run.ySize, extent: run.extent,
    data: [lines.x, ...series],
    series: lines.labels.map((label, i) => ({
      label, stroke: theme.lines[i % theme.lines.length], width: 1.5, spanGaps: !options.gaps,
      points: { show: few, size: 5 }, paths: options.stepped ? STEPPED : undefined,
    })),
    scale: log ? { distr: 3 } : options.scale || {},
    padding: [options.decisions ? ROWS * LETTER + 4 : 8, 12, 0, 0],
    describe: (u) => [
      place(run, u), ...valuesAt(u, lines.labels, u.cursor.idx),
      ...(options.decisions ? ["", ...decisionsNear(run, u)] : []),
    ].join("\n").trim(),
    hooks: {
      drawAxes: options.decisions ? [drawBroken(run)] : [],
      draw: [options.decisions ? drawDecisions(run) : options.draw || (() => {})],
    },
  });
  if (options.decisions) {
    const seen = [...new Set(run.decisions.action.map((i) => run.decisions.texts[i]))];
    key(into, seen.map((one) => [`${badgeOf(one)[0]} ${one}`, badgeOf(one)[1]]));
  }
}

function drawLimit(u) {
  clipped(u, (ctx, bbox) => {
    const y = u.valToPos(1, "y", true);
    ctx.strokeStyle = theme.bad;
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.lineWidth = devicePixelRatio;
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
  });
}

function short(name, most) {
  if (name.length <= most) return name;
  const half = (most - 1) >> 1;
  return `${name.slice(0, half)}…${name.slice(-half)}`;
}

// The axis of rows that have names, the first at the top.
function named(names) {
  const rows = names.map((_, i) => i), step = Math.ceil(names.length / 30);
  return {
    splits: () => rows.filter((i) => i % step === 0),
    values: (u, ticks) => ticks.map((i) => short(names[names.length - 1 - i], 24)),
    grid: { show: false },
  };
}

// Room for the names of seeds and layers, the same in all figures of a run, so that they line up.
function roomForNames(run) {
  const names = [...(run.lanes ? run.lanes.seeds : []), ...(run.heat ? run.heat.layers : [])];
  const most = Math.max(0, ...names.map((one) => short(one, 24).length));
  return Math.max(64, Math.min(24 + 6.6 * most, 190));
}

function rowAt(u, names) {
  const row = names.length - 1 - Math.round(u.posToVal(u.cursor.top, "y"));
  return Math.max(0, Math.min(names.length - 1, row));
}

const rowsScale = (count) => ({ range: () => [-0.5, count - 0.5] });

function drawLanes(run, into) {
  const { seeds, stages, spans, x, alphas, hidden } = run.lanes, last = seeds.length - 1;
  figure(into, {
    height: Math.max(34 * seeds.length, 60) + 62, group: run.group, unit: run.unit, ySize: run.ySize,
    extent: run.extent, padding: [8, 12, 0, 0], legend: false,
    data: [x, ...alphas.map((alpha, i) =>
      alpha.map((one) => (one === null ? null : last - i - 0.4 + 0.8 * one)))],
    series: seeds.map((label) => ({ label, stroke: theme.ink, width: 1.5, points: { show: false } })),
    scale: rowsScale(seeds.length), y: named(seeds),
    describe: (u) => {
      const lane = rowAt(u, seeds), at = u.posToVal(u.cursor.left, "x");
      const span = spans.filter((one) => one[0] === lane && one[2] <= at).pop();
      const alpha = u.cursor.idx === null ? null : alphas[lane][u.cursor.idx];
      return [place(run, u), `${seeds[lane]}  ${span ? stages[span[1]] : "absent"}`,
              `α  ${words(alpha)}`].join("\n");
    },
    hooks: { drawAxes: [(u) => clipped(u, (ctx) => {
      ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
      ctx.textBaseline = "middle";
      ctx.textAlign = "left";
      spans.forEach(([lane, stage, from, to], i) => {
        const next = spans[i + 1];
        const end = next && next[0] === lane ? next[2] : to;
        const left = u.valToPos(from, "x", true), width = u.valToPos(end, "x", true) - left;
        const top = u.valToPos(last - lane + 0.42, "y", true);
        const bottom = u.valToPos(last - lane - 0.42, "y", true);
        ctx.fillStyle = theme.stages[stages[stage]] || theme.grid;
        ctx.fillRect(left, top, Math.max(width, devicePixelRatio), bottom - top);
        if (width > ctx.measureText(stages[stage]).width + 10 * devicePixelRatio) {
          ctx.fillStyle = theme.ink;
          ctx.fillText(stages[stage], left + 5 * devicePixelRatio, (top + bottom) / 2);
        }
      });
    })] },
  });
  const seen = [...new Set(spans.map((one) => stages[one[1]]))];
  key(into, seen.map((one) => [one, theme.stages[one] || theme.grid]));
  if (hidden) into.append(element("p", `${hidden} more seeds are not drawn.`, "hint"));
}

// From dark to light, as even to the eye as five stops allow.
const HEAT = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

function heatColour(share) {
  const at = Math.max(0, Math.min(1, share)) * (HEAT.length - 1), low = Math.min(at | 0, HEAT.length - 2);
  const mix = HEAT[low].map((one, i) => Math.round(one + (at - low) * (HEAT[low + 1][i] - one)));
  return `rgb(${mix.join()})`;
}

function drawHeat(run, into) {
  const { layers, x, end, cells, hidden } = run.heat, last = layers.length - 1;
  let least = Infinity, most = 0;
  for (const row of cells) for (const one of row) {
    if (one > 0) { least = Math.min(least, one); most = Math.max(most, one); }
  }
  const low = Math.log10(least), range = Math.max(Math.log10(most) - low, 1e-9);
  figure(into, {
    height: Math.min(Math.max(18 * layers.length, 80), 480) + 62, group: run.group, unit: run.unit, ySize: run.ySize,
    extent: run.extent, padding: [8, 12, 0, 0], legend: false,
    data: [x, x.map(() => null)], series: [{ label: "layer" }],
    scale: rowsScale(layers.length), y: named(layers),
    describe: (u) => {
      const row = rowAt(u, layers);
      const column = Math.max(firstAtLeast(x, u.posToVal(u.cursor.left, "x") + 1e-9) - 1, 0);
      const norm = cells[row][column];
      return `${run.unit} ${words(x[column])}\n${layers[row]}\ngradient norm  ` +
        (norm === -1 ? "not finite" : words(norm));
    },
    hooks: { drawAxes: [(u) => clipped(u, (ctx) => {
      const edges = [...x, end].map((one) => Math.round(u.valToPos(one, "x", true)));
      layers.forEach((_, row) => {
        const top = Math.round(u.valToPos(last - row + 0.5, "y", true));
        const height = Math.round(u.valToPos(last - row - 0.5, "y", true)) - top;
        cells[row].forEach((norm, i) => {
          if (norm === null) return;
          ctx.fillStyle = norm === -1 ? "#ff1744" : norm === 0 ? heatColour(0)
            : heatColour((Math.log10(norm) - low) / range);
          ctx.fillRect(edges[i], top, Math.max(edges[i + 1] - edges[i], devicePixelRatio), height);
        });
      });
    })] },
  });
  if (most > 0) {
    key(into, [0, 0.25, 0.5, 0.75, 1].map((one) =>
      [words(Number((10 ** (low + one * range)).toPrecision(3))), heatColour(one)]));
  }
  if (hidden) into.append(element("p", `${hidden} more layers are not drawn.`, "hint"));
}

const FIGURES = {
  losses: (run, into) => drawLines(run, into, "losses", { height: 320, decisions: true }),
  accuracy: (run, into) => drawLines(run, into, "accuracy", {}),
  parameters: (run, into) => drawLines(run, into, "parameters", { stepped: true }),
  lanes: drawLanes,
  contributions: (run, into) => drawLines(run, into, "contributions", { gaps: true }),
  heat: drawHeat,
  signals: (run, into) => drawLines(run, into, "signals", {
    height: 220, draw: drawLimit,
    scale: { distr: 4, asinh: 1, range: (u, min, max) => [Math.min(min, -0.1), Math.max(max, 1.5)] },
  }),
  latency: (run, into) => drawLines(run, into, "latency", { log: true }),
};

// One series of every run in one figure.
function drawCompared(runs, into, pick) {
  const some = runs.map((run) => ({ run, found: pick(run) })).filter((one) => one.found);
  const units = new Set(some.map((one) => one.run.unit));
  const data = uPlot.join(some.map((one) => [one.found.x, one.found.values]));
  const unit = units.size === 1 ? [...units][0] : "step or decision";
  const labels = some.map((one) => one.run.name);
  figure(into, {
    height: 220, group: "compared", unit, extent: [data[0][0], data[0][data[0].length - 1]], data,
    series: labels.map((label, i) => ({
      label, stroke: theme.lines[i % theme.lines.length], width: 1.5, spanGaps: true,
      points: { show: false },
    })),
    scale: spreads(data.slice(1).map((one) => one.map((v) => (v === undefined ? null : v))))
      ? { distr: 3 } : {},
    padding: [8, 12, 0, 0],
    describe: (u) => [place({ unit }, u), ...some.map((one, i) =>
      `${labels[i]}  ${words(nearest(one.found, u.posToVal(u.cursor.left, "x")))}`)].join("\n"),
    hooks: {},
  });
}

function nearest({ x, values }, at) {
  return values[Math.min(firstAtLeast(x, at), x.length - 1)];
}
