// The text as tokens: coloured by how likely each was, with lines from the token that is looked at.

import { byId, drawn, element } from "./dom.js";
import { printable } from "./vocabulary.js";

const FAINTEST = 0.01; // Weights below it get no line.
const MOST_BITS = 12; // Of surprise or entropy: the deepest colour.

export class TextView {
  // `go` is called with the number of a token that was clicked; `look` with {side, index} or null.
  constructor(go, look) {
    this.hosts = { text: byId("text-tokens"), source: byId("source-tokens") };
    this.arcs = byId("arcs");
    for (const [side, host] of Object.entries(this.hosts)) {
      const find = (event) => event.target.closest(".token");
      host.addEventListener("pointerover", (event) => find(event) && look({ side, index: this.indexOf(find(event)) }));
      host.addEventListener("pointerleave", () => look(null));
      host.addEventListener("focusin", (event) => find(event) && look({ side, index: this.indexOf(find(event)) }));
      host.addEventListener("click", (event) => {
        const token = find(event);
        if (token && side === "text") go(this.indexOf(token));
      });
      host.addEventListener("keydown", (event) => this.keys(event, host));
    }
    new ResizeObserver(() => this.drawArcs()).observe(byId("tokens"));
  }

  indexOf(token) {
    return Number(token.dataset.index);
  }

  // tokens: [{piece, logprob, entropy, later}], with NaN where nothing is known; colour: probability, entropy or none.
  show(side, tokens, colour, current) {
    const host = this.hosts[side];
    host.hidden = !tokens.length;
    const nodes = tokens.map((token, index) => {
      const bits = (colour === "entropy" ? token.entropy : -token.logprob) / Math.LN2;
      const text = token.piece.kind === "bytes" ? token.piece.text : token.piece.text.split("\n").map(printable).join("↵\n");
      const node = element("button", {
        type: "button", role: "option", "data-index": index, tabindex: index === Math.max(0, current) ? 0 : -1,
        class: `token ${token.piece.kind}${token.later ? " later" : ""}${index === current ? " current" : ""}`,
        "aria-selected": index === current,
        title: spoken(token),
      }, text, token.piece.whole ? element("span", { class: "whole" }, token.piece.whole) : null);
      if (!Number.isNaN(bits) && colour !== "none" && side === "text" && index > 0) {
        const depth = colour === "entropy" ? Math.min(1, bits / MOST_BITS) : Math.exp(token.logprob);
        node.style.setProperty("--depth", depth.toFixed(3));
        node.classList.add(colour);
      }
      return node;
    });
    const focused = host.contains(document.activeElement) ? this.indexOf(document.activeElement) : -1;
    host.replaceChildren(...nodes);
    if (focused >= 0) host.children[Math.min(focused, nodes.length - 1)]?.focus();
  }

  // from: {side, index} of the token that looks; to: "text" or "source"; weights: one per token that is looked at.
  look(from, to, weights) {
    this.looking = from && { from, to, weights };
    this.drawArcs();
  }

  drawArcs() {
    for (const token of this.marked ?? []) {
      token.classList.remove("seen", "looks");
      token.style.removeProperty("--look");
    }
    this.marked = [];
    const looker = this.looking && this.hosts[this.looking.from.side].children[this.looking.from.index];
    if (!looker) return this.arcs.replaceChildren();
    const seen = [];
    this.looking.weights.forEach((weight, index) => {
      const token = this.hosts[this.looking.to].children[index];
      const size = Math.min(1, Math.abs(weight));
      if (size >= FAINTEST && token) seen.push({ token, size });
    });
    // All boxes are read before anything is changed: the browser then lays out once.
    const frame = byId("tokens").getBoundingClientRect();
    const start = looker.getBoundingClientRect();
    for (const one of seen) one.box = one.token.getBoundingClientRect();
    for (const { token, size } of seen) {
      token.classList.add("seen");
      token.style.setProperty("--look", Math.sqrt(size).toFixed(3));
    }
    looker.classList.add("looks");
    this.marked = [looker, ...seen.map(({ token }) => token)];
    this.arcs.setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
    const others = seen.filter(({ token }) => token !== looker);
    this.arcs.replaceChildren(...others.map(({ box, size }) => arc(start, box, frame, size)));
  }

  keys(event, host) {
    const by = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
    if (!by || !event.target.classList.contains("token")) return;
    event.preventDefault();
    const to = Math.max(0, Math.min(host.children.length - 1, this.indexOf(event.target) + by));
    host.children[to].focus();
  }
}

function arc(start, end, frame, weight) {
  const middle = (box) => box.left - frame.left + Math.min(box.width, 400) / 2;
  const [x1, x2] = [middle(start), middle(end)];
  const above = Math.abs(start.top - end.top) < 8;
  const [y1, y2] = [start.top - frame.top + 2, (above ? end.top + 2 : end.bottom - 2) - frame.top];
  const lift = above ? Math.min(26, 8 + Math.abs(x1 - x2) / 12) : 0;
  const d = above
    ? `M${x1} ${y1} C${x1} ${y1 - lift} ${x2} ${y2 - lift} ${x2} ${y2}`
    : `M${x1} ${y1} C${x1} ${(y1 + y2) / 2} ${x2} ${(y1 + y2) / 2} ${x2} ${y2}`;
  return drawn("path", { d, "stroke-width": 1 + 4 * weight, "stroke-opacity": (0.15 + 0.85 * Math.sqrt(weight)).toFixed(3) });
}

export function spoken({ piece, logprob, entropy }) {
  const name = piece.kind === "bytes" ? `bytes ${piece.text}` : piece.text;
  if (Number.isNaN(logprob)) return name;
  return `${name} · probability ${Math.exp(logprob).toPrecision(3)} · ${(-logprob / Math.LN2).toFixed(1)} bits of surprise `
    + `where ${(entropy / Math.LN2).toFixed(1)} were expected`;
}

export function legend(colour) {
  if (colour === "none") return [];
  const ends = colour === "probability" ? ["0", "1: certain"] : ["0 bits: no doubt", `${MOST_BITS} bits`];
  return [ends[0], element("span", { class: `ramp ${colour}` }), ends[1]];
}
