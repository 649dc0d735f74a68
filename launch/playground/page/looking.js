// The look: which head is picked, what it reads on the text, which heads are knocked out.

import * as api from "./api.js";
import { byId, element, segments } from "./dom.js";
import { Grid, HeatMap } from "./heads.js";
import { label } from "./vocabulary.js";

const MOST = 10; // Tokens that are listed.
const KINDS = { self: "text → text", cross: "text → source", encoder: "source → source" };
// Which tokens look, and which are looked at.
const SIDES = { self: ["text", "text"], cross: ["text", "source"], encoder: ["source", "source"] };

// Of a translator, from where it translates; no kind where there is no attention.
export const usualKind = (kinds) => ("cross" in kinds ? "cross" : Object.keys(kinds)[0] ?? "");

export class Looking {
  // `page` is the state of main.js; `changed` is called when heads were knocked out or restored.
  constructor(page, changed) {
    Object.assign(this, { page, changed, tool: "pick", pane: 0, at: null });
    this.grid = new Grid((layer, head, what) => this.clicked(layer, head, what ?? this.tool));
    this.map = new HeatMap((query) => this.look(query === null ? null : { side: SIDES[this.kind][0], index: query }));
    byId("restore").onclick = () => { page.off.clear(); changed(); };
    this.showTools();
  }

  pick(kind, layer, head) {
    Object.assign(this, { kind, layer, head });
  }

  // New networks are on the page; `title` names one.
  opened(title) {
    const { panes } = this.page;
    byId("panes").hidden = panes.length < 2;
    byId("panes").replaceChildren(...panes.map((pane, at) =>
      element("button", { type: "button", role: "radio", "data-value": at }, title(pane.name))));
    for (const name of this.page.off) {
      const [kind, layer, head] = name.split(".");
      if (!panes.some((pane) => pane.has(kind, +layer, +head))) this.page.off.delete(name);
    }
    this.into(Math.min(this.pane, panes.length - 1));
  }

  // Look into the network number `pane`.
  into(pane) {
    this.pane = pane;
    const { kinds, silences } = this.info;
    if (!(this.kind in kinds)) this.kind = usualKind(kinds);
    byId("kinds").hidden = Object.keys(kinds).length < 2;
    byId("kinds").replaceChildren(...Object.keys(kinds).map((kind) =>
      element("button", { type: "button", role: "radio", "data-value": kind }, KINDS[kind])));
    byId("heads").hidden = !this.kind;
    byId("blind").hidden = Boolean(this.kind);
    byId("tools").hidden = !silences;
    const [layers, heads] = kinds[this.kind] ?? [1, 1];
    this.layer = Math.min(Math.max(0, this.layer | 0), layers - 1);
    this.head = Math.min(Math.max(0, this.head | 0), heads - 1);
    this.showTools();
  }

  get info() {
    return this.page.panes[this.pane].info;
  }

  showTools() {
    segments(byId("tools"), this.tool, (tool) => { this.tool = tool; this.showTools(); });
    segments(byId("kinds"), this.kind, (kind) => { this.pick(kind, 0, 0); this.showTools(); this.changed(); });
    segments(byId("panes"), String(this.pane), (pane) => { this.into(Number(pane)); this.changed(); });
    byId("grid-hint").textContent = this.tool === "off" ? "click one to knock it out, again to restore it" : "click one to look at it";
  }

  clicked(layer, head, what) {
    if (what === "off" && this.info.silences) {
      const name = `${this.kind}.${layer}.${head}`;
      if (!this.page.off.delete(name)) this.page.off.add(name);
    }
    this.pick(this.kind, layer, head);
    this.changed();
  }

  // Ask for what the picked head reads, and draw it.
  async show() {
    byId("restore").hidden = !this.page.off.size;
    byId("restore").textContent = `Restore ${this.page.off.size === 1 ? "the head" : `all ${this.page.off.size} heads`}`;
    const shown = this.page.readings[this.pane];
    if (!shown || !this.kind) return this.blind();
    const { kind, layer, head } = this;
    const { pane, ids, question } = shown;
    const [pictures, weights, source] = await Promise.all([
      api.grid({ ...question, kind }), api.head({ ...question, kind, layer, head }),
      pane.info.translates ? api.encodeSource(pane.name, question.source) : [],
    ]);
    this.tokens = { text: pane.pieces(ids), source: pane.pieces(source) };
    if (source.length) this.page.text.show("source", this.tokens.source.map((piece) => ({ piece, logprob: NaN, entropy: NaN })), "none", -1);
    this.weights = weights;
    const off = [...this.page.off].filter((name) => name.startsWith(`${kind}.`)).map((name) => name.slice(kind.length + 1));
    this.grid.show(pictures, [layer, head], new Set(off));
    const [from, to] = SIDES[kind];
    byId("map-title").textContent = `Layer ${layer}, head ${head}`;
    this.map.show(weights, this.names(from), this.names(to), kind === "self");
    this.lines();
  }

  // There is nothing to look at.
  blind() {
    this.weights = null;
    this.page.text.look(null);
    byId("looking").textContent = "";
  }

  names(side) {
    return this.tokens[side].map(label);
  }

  // Look from a token: {side, index}, or null for nowhere.
  look(at) {
    this.at = at;
    this.lines();
  }

  lines() {
    if (!this.weights || !this.kind) return;
    const [from, to] = SIDES[this.kind];
    // Without a token that is pointed at, the last one of the text looks.
    const at = this.at?.side === from ? this.at : from === "text" && !this.at ? { side: from, index: this.weights.queries - 1 } : null;
    const { queries, keys, weights } = this.weights;
    this.map.mark(this.at && at ? at.index : null);
    if (!at || at.index >= queries) {
      this.page.text.look(null);
      byId("looking").textContent = "";
      return;
    }
    const row = weights.subarray(at.index * keys, (at.index + 1) * keys);
    this.page.text.look(at, to, row);
    const ranked = Array.from(row, (weight, key) => [weight, key]).sort((a, b) => b[0] - a[0]);
    const best = ranked.slice(0, MOST).filter(([weight]) => weight >= 0.005);
    const [looker, seen] = [this.names(from), this.names(to)];
    byId("looking").textContent = `Layer ${this.layer}, head ${this.head}: ${looker[at.index]} reads from `
      + best.slice(0, 4).map(([weight, key]) => `${seen[key]} ${weight.toFixed(2)}`).join(", ");
    byId("read-title").textContent = `${looker[at.index]} reads from`;
    byId("read").replaceChildren(...best.map(([weight, key]) => {
      const fill = element("span", { class: "fill" });
      fill.style.transform = `scaleX(${Math.min(1, Math.abs(weight))})`;
      return element("li", {}, element("span", { class: "label" }, seen[key]), element("span", { class: "track" }, fill),
        element("span", { class: "value" }, weight.toFixed(3)));
    }));
  }
}
