// The tree of texts: what is common stands once, and each branch is a line below it.

import { element } from "./dom.js";
import { path } from "./tree.js";
import { printable } from "./vocabulary.js";

// Fill `host` with the tree; `textOf` gives the text of nodes, `go` is called with the node at the end of a part.
export function showTree(host, tree, cursor, textOf, go) {
  const here = new Set(path(cursor));
  const items = [];
  const part = (start, level) => {
    const nodes = [start];
    while (nodes.at(-1).children.length === 1) nodes.push(nodes.at(-1).children[0]);
    const end = nodes.at(-1);
    const logprob = nodes.reduce((sum, node) => sum + (node.logprob ?? NaN), 0);
    const item = element("button", {
      type: "button", role: "treeitem", "aria-level": level, tabindex: items.length ? -1 : 0,
      class: `branch${here.has(nodes[0]) ? " here" : ""}`,
      "aria-expanded": end.children.length > 0 || null,
      "aria-current": nodes.includes(cursor) || null,
      title: `${nodes.length} tokens`,
      onclick: () => go(end),
    }, element("span", { class: "branch-text" }, printable(textOf(nodes).replaceAll("\n", "↵"))),
      Number.isNaN(logprob) || level === 1 ? null
        : element("span", { class: "quiet" }, `${nodes.length} · p ${Math.exp(logprob).toPrecision(2)}`));
    item.style.setProperty("--level", level - 1);
    items.push(item);
    for (const child of end.children) part(child, level + 1);
  };
  for (const child of tree.root.children) part(child, 1);
  host.replaceChildren(...items);
  host.onkeydown = (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const at = items.indexOf(event.target);
    if (!by || at < 0) return;
    event.preventDefault();
    items[Math.max(0, Math.min(items.length - 1, at + by))].focus();
  };
}
