// Saves what the page shows: as a picture, or as numbers.

import { byId } from "./dom.js";
import { png, save, svg } from "./figure.js";
import { filtered } from "./filters.js";
import { path, tokensOf } from "./tree.js";
import { label } from "./vocabulary.js";

const CANDIDATES = 100; // In the JSON; the tail's mass is there as well.

export async function exportAs(kind, page) {
  if (!page.readings.length) return;
  if (kind === "json") {
    save(new Blob([JSON.stringify(numbers(page), null, 1)], { type: "application/json" }), "playground.json");
    return;
  }
  const markup = svg(figure(page));
  if (kind === "svg") save(new Blob([markup], { type: "image/svg+xml" }), "playground.svg");
  else save(await png(markup), "playground.png");
}

function table({ pane, ids, reading }, settings, most) {
  const { probabilities, kept, cut } = filtered(reading.logits, reading.order, settings);
  const pending = pane.vocabulary.pending(ids);
  const rows = Array.from(reading.order.subarray(0, most), (id, rank) => {
    const piece = pane.vocabulary.piece(id, pending);
    return { id, label: label(piece), bytes: [...pane.vocabulary.bytes(id)], p: probabilities[rank], own: reading.own[rank], cut: cut(rank) };
  });
  const mass = (values) => values.subarray(rows.length).reduce((sum, value) => sum + value, 0);
  return { rows, kept, tail: { tokens: reading.order.length - rows.length, mass: mass(probabilities), own: mass(reading.own) } };
}

function numbers(page) {
  const { kind, layer, head, weights } = page.looking;
  return {
    address: location.href,
    settings: { ...page.sliders.settings, order: ["temperature", "topK", "topP", "minP"] },
    source: page.source,
    knockedOut: [...page.off].sort(),
    networks: page.readings.map((shown) => ({
      checkpoint: shown.pane.name, name: shown.pane.info.name,
      text: shown.pane.vocabulary.text(shown.ids),
      tokens: shown.ids.map((id, at) => ({
        id, text: shown.pane.vocabulary.piece(id).text,
        logprob: at ? shown.reading.logprobs[at] : null, entropy: at ? shown.reading.entropies[at] : null,
      })),
      next: table(shown, page.sliders.settings, CANDIDATES),
    })),
    attention: weights ? {
      kind, layer, head,
      weights: Array.from({ length: weights.queries }, (_, t) => Array.from(weights.weights.subarray(t * weights.keys, (t + 1) * weights.keys))),
    } : null,
    branches: page.tree.leaves.map((leaf) => ({ ids: tokensOf(leaf), text: page.panes[0].vocabulary.text(tokensOf(leaf)), logprob: sum(leaf) })),
  };
}

// The log-probability of a text after its first token, or null where part of it was never read.
function sum(leaf) {
  const total = path(leaf).slice(1).reduce((so_far, node) => so_far + (node.logprob ?? NaN), 0);
  return Number.isNaN(total) ? null : total;
}

function figure(page) {
  const { looking } = page;
  const shown = page.readings[0];
  const { rows, tail } = table(shown, page.sliders.settings, 16);
  const { temperature, topK, topP, minP, greedy } = page.sliders.settings;
  const sides = { self: ["text", "text"], cross: ["text", "source"], encoder: ["source", "source"] }[looking.kind];
  return {
    title: shown.pane.vocabulary.text(shown.ids).slice(-80),
    subtitle: [
      byId("model").selectedOptions[0].textContent,
      greedy ? "greedy" : `temperature ${temperature}, top-k ${topK || "off"}, top-p ${topP < 1 ? topP : "off"}, min-p ${minP || "off"}`,
      page.off.size ? `knocked out: ${[...page.off].sort().join(", ")}` : "",
    ].filter(Boolean).join(" · "),
    look: looking.weights && sides ? {
      title: `Layer ${looking.layer}, head ${looking.head}`, queries: looking.names(sides[0]), keys: looking.names(sides[1]),
      weights: looking.weights.weights, looking: looking.at?.index ?? null,
    } : null,
    table: rows,
    tail,
  };
}
