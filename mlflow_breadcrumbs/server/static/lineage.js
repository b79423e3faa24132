// Draws the graph that this page gives as JSON. The server has placed every version, so nothing is
// laid out here; the table below the graph has the same for those who see no canvas.
"use strict";

const WIDTH = 210; // between two columns, in the graph's units
const HEIGHT = 52; // between two rows
const LABEL = 30; // characters of a label
const AT_ONCE = 400; // versions that are added before the browser may draw again

const box = document.getElementById("graph");
const chosen = document.getElementById("chosen");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function label(node) {
  const uri = node.uri.replace(/^models:\//, "");
  const named = uri.length > LABEL ? `${uri.slice(0, LABEL - 7)}…${uri.slice(-6)}` : uri;
  const aliases = node.aliases.map((alias) => `@${alias}`).join(" ");
  const short = aliases.length > LABEL ? `${aliases.slice(0, LABEL - 1)}…` : aliases;
  return short ? `${named}\n${short}` : named;
}

function address(uri) {
  const named = /^models:\/([^/]+)\/(\d+)$/.exec(uri);
  if (!named) return null;
  const root = location.pathname.replace(/\/models\/[^/]+\/versions\/\d+\/lineage$/, "");
  return `${root}/models/${encodeURIComponent(named[1])}/versions/${named[2]}`;
}

function elements(page) {
  const counts = new Map();
  for (const node of page.nodes) counts.set(node.column, Math.max(counts.get(node.column) || 0, node.row));
  const nodes = page.nodes.map((node) => ({
    data: { ...node, label: label(node) },
    position: { x: node.column * WIDTH, y: (node.row - counts.get(node.column) / 2) * HEIGHT },
    classes: [
      node.visible && node.kind !== "missing" ? node.kind : "gone",
      node.column === 0 ? "root" : "",
      node.aliases.length ? "live" : "",
      node.recall,
    ].join(" "),
  }));
  const edges = page.edges.map((edge, number) => ({
    data: { id: `e${number}`, source: edge.parent, target: edge.child, role: edge.role },
    classes: edge.role,
  }));
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
  const to = found.visible && found.kind !== "missing" ? address(found.uri) : null;
  const name = document.createElement(to ? "a" : "span");
  name.textContent = found.uri.replace(/^models:\//, "");
  if (to) name.href = to;
  const recall = { recalled: "recalled", suspect: "made from a recalled one" }[found.recall];
  const more = [found.kind, recall, ...found.tasks, ...found.aliases.map((alias) => `@${alias}`)].filter(Boolean);
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
      const words = [found.uri, found.kind, found.recall, ...found.tasks, ...found.aliases.map((alias) => `@${alias}`)];
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
  const place = new Map(nodes.map((node, number) => [node.data.id, Math.floor(number / AT_ONCE)]));
  const found = Array.from({ length: Math.ceil(nodes.length / AT_ONCE) }, () => ({ nodes: [], edges: [] }));
  for (const node of nodes) found[place.get(node.data.id)].nodes.push(node);
  for (const edge of all.edges) {
    found[Math.max(place.get(edge.data.source), place.get(edge.data.target))].edges.push(edge);
  }
  return found;
}

async function add(graph, portion) {
  await new Promise((resolve) => { setTimeout(resolve); }); // the browser draws, and hears the user
  graph.batch(() => graph.add(portion));
}

async function draw() {
  const answer = await fetch(location.href, { headers: { Accept: "application/json" } });
  const page = await answer.json();
  const large = page.nodes.length > AT_ONCE;
  const [first, ...others] = portions(elements(page));
  const graph = cytoscape({
    container: box, elements: first, layout: { name: "preset" }, style: style(),
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
  for (const portion of others) await add(graph, portion);
  performance.mark("drawn");
  box.dataset.nodes = graph.nodes().length;
}

draw().catch(() => { chosen.textContent = "The graph can't be drawn; the table below has the same."; });
