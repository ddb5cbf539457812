"use strict";
// Unpacks the data, draws what is open, and lists the decisions.

const SHOWN = 200;
const COMPARED = {
  validation_loss: (run) => picked(run.lines.losses, "validation"),
  training_loss: (run) => picked(run.lines.losses, "training"),
  accuracy: (run) => picked(run.lines.accuracy, "validation accuracy"),
  parameters: (run) => picked(run.lines.parameters, "live parameters"),
};

function picked(lines, label) {
  const at = lines ? lines.labels.indexOf(label) : -1;
  return at < 0 ? null : { x: lines.x, values: lines.series[at] };
}

async function unpack() {
  const characters = atob(document.getElementById("data").textContent);
  const packed = new Uint8Array(characters.length);
  for (let i = 0; i < packed.length; i++) packed[i] = characters.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// Whole numbers are stored as differences, each from the one before.
function summed(differences) {
  let sum = 0;
  return differences.map((one) => (sum += one));
}

function has(run, name) {
  return name === "lanes" || name === "heat" ? run[name] !== null : name in run.lines;
}

function drawRun(run) {
  for (const [name, draw] of Object.entries(FIGURES)) {
    const block = document.getElementById(`run-${run.index}-${name}`);
    block.hidden = !has(run, name);
    if (!block.hidden) draw(run, emptied(block));
  }
}

function emptied(block) {
  const into = block.querySelector(".plot");
  into.replaceChildren();
  return into;
}

function drawAll(runs) {
  for (const one of plots.splice(0)) one.destroy();
  if (runs.length > 1) {
    for (const [name, pick] of Object.entries(COMPARED)) {
      const block = document.getElementById(`compared-${name}`);
      block.hidden = !runs.some(pick);
      if (!block.hidden) drawCompared(runs, emptied(block), pick);
    }
  }
  for (const run of runs) {
    const details = document.querySelector(`details[data-run="${run.index}"]`);
    if (!details || details.open) drawRun(run);
  }
}

function listDecisions(run) {
  const made = run.decisions, block = document.getElementById(`run-${run.index}-decisions`);
  const search = block.querySelector("input"), button = block.querySelector("button");
  const text = (column, i) => made.texts[made[column][i]];
  let all = false;
  const list = () => {
    const wanted = search.value.toLowerCase(), found = [];
    for (let i = made.x.length - 1; i >= 0; i--) {
      if (!wanted) { found.push(i); continue; }
      const line = `${made.x[i]} ${text("action", i)} ${text("command", i)} ${text("reason", i)} ${text("why", i)}`;
      if (line.toLowerCase().includes(wanted)) found.push(i);
    }
    const shown = all ? found : found.slice(0, SHOWN);
    block.querySelector(".count").textContent = found.length === 0 ? "none"
      : `${shown.length.toLocaleString("en")} of ${found.length.toLocaleString("en")}, the newest first`;
    button.hidden = shown.length === found.length;
    block.querySelector(".scroll").replaceChildren(found.length ? table(shown) : "");
  };
  const table = (rows) => {
    const made_of_rows = element("table"), head = element("tr");
    for (const name of [run.unit, "time (UTC)", "action", "what", "why"]) {
      head.append(element("th", name, name === run.unit ? "n" : ""));
    }
    made_of_rows.append(head);
    for (const i of rows) {
      const row = element("tr"), action = element("td");
      const badge = element("span", text("action", i), "badge");
      badge.style.background = badgeOf(text("action", i))[1];
      action.append(badge);
      const shadow = text("mode", i) === "shadow" ? "would: " : "";
      const reason = text("reason", i), why = text("why", i);
      row.append(element("td", words(made.x[i]), "n"),
        element("td", new Date(made.time[i]).toISOString().slice(0, 19).replace("T", " "), "t"), action,
        element("td", shadow + text("command", i)),
        element("td", why.includes(reason) ? why : `${why} (${reason})`));
      made_of_rows.append(row);
    }
    return made_of_rows;
  };
  search.addEventListener("input", list);
  button.addEventListener("click", () => { all = true; list(); });
  list();
}

unpack().then(({ runs }) => {
  runs.forEach((run, index) => {
    for (const [name, column] of Object.entries(run.decisions)) {
      if (name !== "texts") run.decisions[name] = summed(column);
    }
    run.index = index;
    run.group = `run-${index}`;
    run.ySize = roomForNames(run);
    listDecisions(run);
  });
  drawAll(runs);
  for (const details of document.querySelectorAll("details.run")) {
    details.addEventListener("toggle", () => drawAll(runs));
  }
  const inTheme = (wanted) => { theme = wanted; drawAll(runs); };
  dark.addEventListener("change", () => inTheme(dark.matches ? DARK : LIGHT));
  window.addEventListener("beforeprint", () => inTheme(LIGHT));
  window.addEventListener("afterprint", () => inTheme(dark.matches ? DARK : LIGHT));
  let waiting;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => drawAll(runs), 150);
  });
  document.body.dataset.drawn = String(plots.length);
});
