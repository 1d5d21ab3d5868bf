// The draft tree of one pass, drawn from its root on the left: nodes in columns by depth, the kept path filled.

const WIDTH = 300, HEIGHT = 220, MARGIN = 16;

// draft: { tokens: [text], parents: [index, -1 is the root], path: [index] }, or null before anything was drafted.
export function drawTree(svg, description, draft) {
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  if (!draft) {
    svg.replaceChildren();
    description.textContent = "Nothing was guessed yet.";
    return;
  }
  const depth = draft.parents.map(() => 0);
  draft.parents.forEach((parent, node) => { depth[node] = parent < 0 ? 1 : depth[parent] + 1; });
  const deepest = Math.max(...depth);
  const columns = Array.from({ length: deepest + 1 }, () => []);
  depth.forEach((level, node) => columns[level].push(node));
  const x = (level) => MARGIN + (level * (WIDTH - 5 * MARGIN)) / deepest;
  const y = {};
  for (const column of columns) {
    column.sort((a, b) => (y[draft.parents[a]] ?? 0) - (y[draft.parents[b]] ?? 0));
    column.forEach((node, place) => { y[node] = ((place + 1) * HEIGHT) / (column.length + 1); });
  }
  y[-1] = HEIGHT / 2;
  const onPath = new Set(draft.path);
  const drawn = [];
  draft.parents.forEach((parent, node) => {
    const from = { x1: x(parent < 0 ? 0 : depth[parent]), y1: y[parent] };
    drawn.push(shape("line", { ...from, x2: x(depth[node]), y2: y[node], class: onPath.has(node) ? "path" : "" }));
  });
  drawn.push(shape("circle", { cx: x(0), cy: y[-1], r: 5, class: "root" }));
  const crowded = Math.max(...columns.map((column) => column.length)) > 14;
  draft.tokens.forEach((token, node) => {
    const kept = onPath.has(node);
    drawn.push(shape("circle", { cx: x(depth[node]), cy: y[node], r: kept ? 5 : 4, class: kept ? "path" : "" }));
    if (kept || !crowded) {
      const label = shape("text", { x: x(depth[node]) + 8, y: y[node] + 4 });
      label.textContent = token.replace(/\s/g, "\u00b7").slice(0, 8);
      drawn.push(label);
    }
  });
  svg.replaceChildren(...drawn);
  const kept = draft.path.map((node) => draft.tokens[node].trim()).join(" ");
  description.textContent = `${draft.tokens.length} tokens guessed, ${draft.path.length} kept${kept ? `: ${kept}` : ""}.`;
}

function shape(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
