// Draws the table of this page as a graph. The server has placed every version, so nothing is laid
// out here; the table stays for those who see no canvas.
"use strict";

const WIDTH = 210; // between two columns, in the graph's units
const HEIGHT = 52; // between two rows
const LABEL = 30; // characters of a label
const FIRST = 200; // versions that are drawn first; a graph of more is large
const AT_ONCE = 2000; // that are added then before the browser may draw again: every time costs

const box = document.getElementById("graph");
const chosen = document.getElementById("chosen");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function label(node) {
  const named = node.uri.length > LABEL ? `${node.uri.slice(0, LABEL - 7)}…${node.uri.slice(-6)}` : node.uri;
  const aliases = node.aliases.join(" ");
  const short = aliases.length > LABEL ? `${aliases.slice(0, LABEL - 1)}…` : aliases;
  return short ? `${named}\n${short}` : named;
}

// A version, as its row of the table has it.
function read(row) {
  const [version, , , tasks, aliases] = row.cells;
  const { kind, recall, from } = row.dataset;
  return {
    id: row.id,
    uri: version.textContent,
    link: version.querySelector("a")?.href,
    kind,
    recall,
    tasks: tasks.textContent,
    aliases: Array.from(aliases.children, (alias) => alias.textContent),
    column: Number(row.dataset.column),
    row: Number(row.dataset.row),
    from: from.split(" ").filter(Boolean).map((each) => each.split(":")),
  };
}

function elements(versions) {
  const last = new Map();
  for (const each of versions) last.set(each.column, Math.max(last.get(each.column) || 0, each.row));
  const nodes = versions.map((each) => ({
    data: { ...each, label: label(each) },
    position: { x: each.column * WIDTH, y: (each.row - last.get(each.column) / 2) * HEIGHT },
    classes: [
      ["", "missing"].includes(each.kind) ? "gone" : each.kind,
      each.column === 0 ? "root" : "",
      each.aliases.length ? "live" : "",
      each.recall,
    ].join(" "),
  }));
  const edges = versions.flatMap((each) => each.from.map(([source, role], number) => ({
    data: { id: `${each.id}-${number}`, source, target: each.id },
    classes: role,
  })));
  return { nodes, edges };
}

function style() {
  return [
    { selector: "node", style: {
      shape: "round-rectangle", width: 170, height: 28, label: "data(label)", "font-size": 11,
      "text-valign": "center", "text-wrap": "wrap",
      "min-zoomed-font-size": 6, color: colour("--text"), "background-color": colour("--node"),
      "border-width": 1, "border-color": colour("--arrow"),
    } },
    { selector: ".merge", style: { "background-color": colour("--merge") } },
    { selector: ".root", style: { "background-color": colour("--root"), color: colour("--ground"), "font-weight": 600 } },
    { selector: ".live", style: { height: 40, "border-width": 3, "border-color": colour("--live") } },
    { selector: ".suspect", style: { "border-width": 3, "border-style": "dashed", "border-color": colour("--bad") } },
    { selector: ".recalled", style: { "border-width": 3, "border-color": colour("--bad"), "background-color": colour("--bad-ground"), color: colour("--bad") } },
    { selector: ".gone", style: { "background-opacity": 0, "border-style": "dashed", "font-style": "italic" } },
    { selector: "edge", style: {
      width: 1.2, "line-color": colour("--arrow"), "curve-style": "haystack", "haystack-radius": 0,
    } },
    { selector: "edge.base", style: { "line-style": "dashed" } },
    { selector: ".near", style: { "line-color": colour("--focus"), width: 2.4 } },
    { selector: "node:selected", style: { "border-width": 3, "border-color": colour("--focus") } },
    { selector: ".faded", style: { opacity: 0.15 } },
  ];
}

function tell(graph, node) {
  graph.elements().unselect().removeClass("near");
  node.select();
  node.connectedEdges().addClass("near");
  const found = node.data();
  chosen.replaceChildren();
  const name = document.createElement(found.link ? "a" : "span");
  name.textContent = found.uri;
  if (found.link) name.href = found.link;
  const recall = { recalled: "recalled", suspect: "made from a recalled one" }[found.recall];
  const more = [found.kind, recall, found.tasks, ...found.aliases].filter(Boolean);
  chosen.append(name, more.length ? `: ${more.join(", ")}` : "");
}

// The version that is nearest in the direction of an arrow key.
function step(graph, key) {
  const from = graph.$("node:selected").nonempty() ? graph.$("node:selected")[0] : graph.$(".root")[0];
  const at = from.position();
  const sideways = key === "ArrowLeft" || key === "ArrowRight";
  const sign = key === "ArrowLeft" || key === "ArrowUp" ? -1 : 1;
  let best = null;
  let least = Infinity;
  for (const node of sideways ? from.neighborhood("node") : graph.nodes()) {
    const to = node.position();
    const along = sign * (sideways ? to.x - at.x : to.y - at.y);
    const across = Math.abs(sideways ? to.y - at.y : to.x - at.x);
    if (along > 0 && (sideways || across === 0) && along + across < least) {
      best = node;
      least = along + across;
    }
  }
  if (best) {
    tell(graph, best);
    graph.center(best);
  }
}

function zoom(graph, factor) {
  const middle = { x: graph.width() / 2, y: graph.height() / 2 };
  graph.zoom({ level: graph.zoom() * factor, renderedPosition: middle });
}

function keys(graph, event) {
  if (event.key.startsWith("Arrow")) step(graph, event.key);
  else if (event.key === "+") zoom(graph, 1.25);
  else if (event.key === "-") zoom(graph, 0.8);
  else if (event.key === "0") graph.fit(undefined, 20);
  else if (event.key === "Enter" && chosen.querySelector("a")) chosen.querySelector("a").click();
  else return;
  event.preventDefault();
}

function find(graph, text) {
  const wanted = text.trim().toLowerCase();
  graph.batch(() => {
    graph.elements().removeClass("faded");
    if (!wanted) return;
    const hit = graph.nodes().filter((node) => {
      const found = node.data();
      const words = [found.uri, found.kind, found.recall, found.tasks, ...found.aliases];
      return words.join(" ").toLowerCase().includes(wanted);
    });
    graph.elements().not(hit).addClass("faded");
    chosen.textContent = `${hit.length} found`;
  });
}

// All of a small graph; of one that would be too small to read, this version and what is near it.
function begin(graph, large) {
  if (!large) graph.fit(undefined, 20);
  if (graph.zoom() > 1.2) graph.zoom(1.2), graph.center();
  if (large || graph.zoom() < 0.5) graph.zoom(0.9), graph.center(graph.$(".root"));
}

// The elements in portions, those nearest to this version first: each has some versions, and the
// edges whose two ends are there by then.
function portions(all) {
  const nodes = [...all.nodes].sort((one, other) => Math.abs(one.data.column) - Math.abs(other.data.column));
  const portion = (number) => (number < FIRST ? 0 : 1 + Math.floor((number - FIRST) / AT_ONCE));
  const place = new Map(nodes.map((node, number) => [node.data.id, portion(number)]));
  const found = Array.from({ length: portion(nodes.length - 1) + 1 }, () => ({ nodes: [], edges: [] }));
  for (const node of nodes) found[place.get(node.data.id)].nodes.push(node);
  for (const edge of all.edges) {
    found[Math.max(place.get(edge.data.source), place.get(edge.data.target))].edges.push(edge);
  }
  return found;
}

// The browser draws what there is, and hears the user.
const breath = () => new Promise((resolve) => { setTimeout(resolve); });

async function draw() {
  const versions = Array.from(document.getElementById("versions").rows, read);
  const large = versions.length > FIRST;
  const [first, ...others] = portions(elements(versions));
  if (large) await breath();
  const graph = cytoscape({
    container: box, elements: first, layout: { name: "preset", fit: false }, style: style(),
    minZoom: 0.02, maxZoom: 3, hideEdgesOnViewport: large, textureOnViewport: large,
    boxSelectionEnabled: false, autoungrabify: true,
  });
  begin(graph, large);
  graph.on("tap", "node", (event) => tell(graph, event.target));
  box.addEventListener("keydown", (event) => keys(graph, event));
  document.getElementById("nearer").addEventListener("click", () => zoom(graph, 1.25));
  document.getElementById("farther").addEventListener("click", () => zoom(graph, 0.8));
  document.getElementById("whole").addEventListener("click", () => graph.fit(undefined, 20));
  document.getElementById("wanted").addEventListener("input", (event) => find(graph, event.target.value));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => graph.style(style()));
  performance.mark("begun");
  for (const portion of others) {
    await breath();
    graph.batch(() => graph.add(portion));
  }
  performance.mark("drawn");
  box.dataset.nodes = graph.nodes().length;
}

draw().catch(() => { chosen.textContent = "The graph can't be drawn; the table below has the same."; });
