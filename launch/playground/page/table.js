// The next-token table: the likeliest tokens as bars, and how much the others have together.

import { element, number, probability } from "./dom.js";
import { visible } from "./vocabulary.js";

const ROW = 28; // Pixels.
const FULL = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]; // What a whole bar can stand for.

// What a whole bar stands for, so that all of these probabilities can be shown.
export const wholeBar = (probabilities) => FULL.find((full) => full >= Math.max(...probabilities) - 1e-9);

const NAMES = { k: "top-k", p: "top-p", m: "min-p", g: "greedy" };

export class Table {
  // `choose` is called with a token's id.
  constructor(host, title, choose) {
    this.choose = choose;
    this.most = 20;
    this.rows = new Map();
    this.list = element("div", { class: "rows", role: "listbox", "aria-label": `Candidates of ${title}` });
    this.list.addEventListener("keydown", (event) => this.keys(event));
    this.tail = element("div", { class: "tail" });
    this.more = element("button", { type: "button", class: "quiet more" }, "Show more");
    this.more.onclick = () => { this.most = this.most === 20 ? 100 : 20; this.draw(); };
    this.heading = element("h3", {}, title);
    this.note = element("p", { class: "quiet note" });
    host.append(element("div", { class: "table" }, this.heading, this.note, this.list, this.tail, this.more));
  }

  // Draw a distribution.
  //   reading: of the text, as of api.read; distribution: as of filters.filtered; vocabulary, pending: see vocabulary.js.
  //   reference: a reading to compare with, or null: its probabilities are marked. chosen: the token that comes next in
  //   the text that is shown, or null. usable: whether a click can choose. full: what a whole bar stands for.
  show(data) {
    this.data = data;
    this.draw();
  }

  draw() {
    const { reading, distribution, vocabulary, pending, reference, chosen, usable, note } = this.data;
    const { order, own } = reading;
    const shown = Math.min(this.most, order.length);
    const ranks = Array.from({ length: shown }, (_, rank) => rank);
    const far = chosen === null ? -1 : order.indexOf(chosen);
    if (far >= shown) ranks.push(far);
    const others = reference && Object.fromEntries(this.referenced(reference, ranks.map((rank) => order[rank])));
    this.full = this.data.full;
    const gone = new Set(this.rows.keys());
    ranks.forEach((rank, place) => {
      const id = order[rank];
      gone.delete(id);
      const row = this.rows.get(id) ?? this.make(id);
      const cut = distribution.cut(rank);
      const p = distribution.probabilities[rank];
      const piece = vocabulary.piece(id, pending);
      row.node.style.transform = `translateY(${place * ROW}px)`;
      row.node.classList.toggle("cut", cut !== "");
      row.node.classList.toggle("chosen", id === chosen);
      row.node.disabled = !usable;
      row.node.dataset.probability = p;
      row.node.dataset.own = own[rank];
      row.node.dataset.rank = rank;
      row.node.tabIndex = place === 0 ? 0 : -1;
      row.rank.textContent = rank + 1;
      row.label.replaceChildren(...labelled(piece));
      row.bar.style.transform = `scaleX(${p / this.full})`;
      row.own.style.transform = `scaleX(${own[rank] / this.full})`;
      row.mark.hidden = !others;
      if (others) row.mark.style.left = `calc(${100 * Math.min(1, others[id] / this.full)}% - 1px)`;
      row.value.textContent = cut ? NAMES[cut] : probability(p);
      const spoken = piece.whole ? `${piece.whole} (bytes ${piece.text})` : piece.text;
      row.node.title = `${visible(spoken)} · token ${id} · own probability ${own[rank].toPrecision(3)}`
        + (others ? ` · reference ${others[id].toPrecision(3)}` : "");
      row.node.setAttribute("aria-label", `${rank + 1}: ${visible(spoken)}, ${cut ? `cut off by ${NAMES[cut]}` : probability(p)}`);
    });
    for (const id of gone) { this.rows.get(id).node.remove(); this.rows.delete(id); }
    this.list.style.height = `${ranks.length * ROW}px`;
    this.drawTail(distribution, own, shown);
    this.note.textContent = note;
    this.note.hidden = !note;
    this.more.textContent = this.most === 20 ? "Show 100" : "Show 20";
    this.more.hidden = order.length <= 20;
  }

  drawTail(distribution, own, shown) {
    const mass = (values, from, to) => values.subarray(from, to).reduce((sum, value) => sum + value, 0);
    const V = own.length;
    const rest = mass(distribution.probabilities, shown, V);
    const lost = mass(own, distribution.kept, V);
    this.tail.dataset.mass = rest;
    this.tail.replaceChildren(
      element("span", {}, `${number.format(V - shown)} other tokens`),
      element("span", { class: "track" }, this.tailBar(rest)),
      element("span", { class: "value" }, probability(rest)),
      element("span", { class: "quiet scale" }, `a whole bar is ${this.full}; pale: the network's own distribution`),
      element("span", { class: "quiet whole" }, distribution.kept === V
        ? `Nothing of ${number.format(V)} tokens is cut off.`
        : `${number.format(V - distribution.kept)} of ${number.format(V)} tokens are cut off: `
          + `${probability(lost)} of the network's own distribution.`),
    );
  }

  tailBar(mass) {
    const fill = element("span", { class: mass > this.full ? "fill over" : "fill" });
    fill.style.transform = `scaleX(${Math.min(1, mass / this.full)})`;
    return fill;
  }

  make(id) {
    const row = {
      rank: element("span", { class: "rank" }), label: element("span", { class: "label" }),
      own: element("span", { class: "own" }), bar: element("span", { class: "fill" }),
      mark: element("span", { class: "mark", hidden: true }), value: element("span", { class: "value" }),
    };
    row.node = element("button", { type: "button", role: "option", class: "row", "data-token": id },
      row.rank, row.label, element("span", { class: "track" }, row.own, row.bar, row.mark), row.value);
    row.node.addEventListener("click", () => this.choose(id));
    this.rows.set(id, row);
    this.list.append(row.node);
    return row;
  }

  // The probabilities that another reading gives to some tokens.
  *referenced(reference, ids) {
    const highest = reference.logits[reference.order[0]];
    let sum = 0;
    for (const logit of reference.logits) sum += Math.exp(logit - highest);
    for (const id of ids) yield [id, Math.exp(reference.logits[id] - highest) / sum];
  }

  keys(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const here = Number(event.target.dataset.rank);
    if (!by || Number.isNaN(here)) return;
    event.preventDefault();
    [...this.rows.values()].find((row) => Number(row.node.dataset.rank) === here + by)?.node.focus();
  }
}

// What a token is shown as: text with its white space visible, the name of a special one, or bytes.
export function labelled(piece) {
  if (piece.kind === "bytes") {
    const bytes = element("span", { class: "bytes" }, piece.text);
    return piece.whole ? [bytes, element("span", { class: "whole" }, `→ ${piece.whole}`)] : [bytes];
  }
  return [element("span", { class: piece.kind }, visible(piece.text))];
}
