// The page: what is shown, and what happens when somebody does something.

import * as api from "./api.js";
import { showTree } from "./branches.js";
import { byId, element, segments } from "./dom.js";
import { exportAs } from "./export.js";
import { divergence, drawn, filtered, uniform } from "./filters.js";
import { linked, parsed } from "./link.js";
import { Looking, usualKind } from "./looking.js";
import { Pane } from "./pane.js";
import { Sliders } from "./sliders.js";
import { Table, wholeBar } from "./table.js";
import { legend, TextView } from "./text.js";
import { path, tipOf, tokensOf, Tree } from "./tree.js";

const TYPING = 200; // Milliseconds without a key before the text is read.
const SHOWN_STEP = 60; // Each token of a run is shown at least so long.

const page = {
  panes: [], tables: [], tree: new Tree(), cursor: null, tip: null, source: null, colour: "probability",
  running: false, readings: [], off: new Set(),
};
const status = (text, wrong = false) => {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
};

async function start() {
  const link = parsed(location.search);
  const { models, first } = await api.models();
  const known = (name, usual) => {
    const found = models.some((choice) => choice.model === name);
    if (name && !found) page.warning = `The link shows ${name}, which is not served here.`;
    return found ? name : usual;
  };
  for (const choice of models) {
    byId("model").append(element("option", { value: choice.model }, choice.title));
    byId("compare").append(element("option", { value: choice.model }, choice.title));
  }
  byId("model").value = known(link.model, first[0]);
  byId("compare").value = known(link.compare, location.search ? "" : first[1] ?? "");
  page.text = new TextView(go, (at) => page.looking.look(at));
  page.looking = new Looking(page, changed);
  Object.assign(page, { colour: link.colour, off: new Set(link.off) });
  page.looking.pick(link.kind, link.layer, link.head);
  byId("seed").value = link.seed;
  await openPanes();
  page.sliders = new Sliders(page.panes[0].info.vocabulary, () => { drawTables(); remember(); });
  Object.assign(page.sliders.settings, {
    temperature: link.temperature, topK: link.top_k, topP: link.top_p, minP: link.min_p, greedy: link.greedy,
  });
  page.sliders.show();
  const info = page.panes[0].info;
  page.source = info.translates ? link.source ?? info.example : null;
  byId("source").value = page.source ?? "";
  const text = link.text ?? (info.translates ? "" : info.example);
  byId("text").value = text;
  page.cursor = page.tip = page.tree.follow(link.ids.length ? link.ids : await api.encode(page.panes[0].name, text));
  if (link.ids.length) path(page.tip).forEach((node) => { node.typed = false; });
  listen();
  await changed();
}

async function openPanes() {
  status("Opening the network…");
  const names = [byId("model").value, byId("compare").value].filter(Boolean);
  page.panes = await Promise.all(names.map((name) => Pane.open(name)));
  if (page.panes.some((pane) => pane.info.translates !== page.panes[0].info.translates)) {
    page.panes.length = 1;
    byId("compare").value = "";
    page.warning = "A translator stands beside translators only.";
  }
  byId("tables").replaceChildren();
  const title = (name) => [...byId("model").options].find((option) => option.value === name).textContent;
  page.tables = page.panes.map((pane) => new Table(byId("tables"), title(pane.name), choose));
  document.body.classList.toggle("beside", page.panes.length > 1);
  byId("source-field").hidden = !page.panes[0].info.translates;
  byId("text-label").textContent = page.panes[0].info.translates ? "The translation so far" : "Type here; the network reads along";
  page.looking.opened(title);
}

// Read what is shown, and show it; called again while it reads, it reads what is shown then.
async function changed() {
  page.stale = true;
  if (page.reading) return page.reading;
  page.reading = (async () => {
    while (page.stale) {
      page.stale = false;
      try {
        await readAll();
      } catch (error) {
        status(error.message, true);
        stop();
      }
    }
  })();
  await page.reading;
  page.reading = null;
}

async function readAll() {
  const waiting = setTimeout(() => status("Reading…"), 150);
  try {
    const { cursor } = page;
    const ids = tokensOf(cursor);
    drawText();
    const readings = await Promise.all(page.panes.map(async (pane) => {
      const own = await pane.translated(ids, page.panes[0]);
      const most = pane.info.longest;
      if (own.length > most) throw new Error(`The text has ${own.length} tokens: this page shows texts of 1 to ${most}.`);
      const question = pane.question(own, page.source, page.off);
      const intact = question.off.length ? await pane.read(pane.question(own, page.source, new Set())) : null;
      return { pane, ids: own, question, intact, reading: await pane.read(question) };
    }));
    if (page.stale) return; // Something else is shown by now.
    page.readings = readings;
    path(cursor).forEach((node, at) => {
      node.logprob = readings[0].reading.logprobs[at];
      node.entropy = readings[0].reading.entropies[at];
    });
    drawText();
    drawTables();
    showTree(byId("tree"), page.tree, cursor, (nodes) => page.panes[0].vocabulary.text(nodes.map((node) => node.token)), (node) => {
      page.tip = node;
      go(node.depth - 1);
    });
    await page.looking.show();
    remember();
    status(page.warning || `${ids.length} token${ids.length === 1 ? "" : "s"}`, Boolean(page.warning));
    page.warning = "";
  } finally {
    clearTimeout(waiting);
  }
}

function drawText() {
  const nodes = path(page.tip);
  const pieces = page.panes[0].pieces(nodes.map((node) => node.token));
  const tokens = nodes.map((node, at) => ({
    piece: pieces[at], logprob: at ? node.logprob ?? NaN : NaN, entropy: node.entropy ?? NaN, later: node.depth > page.cursor.depth,
  }));
  page.text.show("text", tokens, page.colour, page.cursor.depth - 1);
  segments(byId("colours"), page.colour, (colour) => { page.colour = colour; drawText(); page.looking.lines(); remember(); });
  byId("legend").replaceChildren(...legend(page.colour));
}

function drawTables() {
  const distributions = page.readings.map(({ reading }) => filtered(reading.logits, reading.order, page.sliders.settings));
  const highest = page.readings.flatMap(({ reading, intact }, at) => [reading.own[0], intact?.own[0] ?? 0, distributions[at].probabilities[0]]);
  const full = wholeBar(highest);
  page.readings.forEach(({ pane, ids, question, reading, intact }, at) => {
    const following = page.tip === page.cursor ? null : path(page.tip)[page.cursor.depth]?.token;
    const same = pane.same(page.panes[0]);
    const other = at === 1 && same ? page.readings[0].reading : null;
    const off = question.off.length;
    const note = intact ? `${off} head${off === 1 ? " is" : "s are"} knocked out: ${divergence(intact.logits, reading.logits).toFixed(3)} bits from the intact network, `
      + "whose probabilities are marked."
      : other ? `${divergence(reading.logits, other.logits).toFixed(3)} bits from the network beside it, whose probabilities are marked.`
        : at === 1 && !same ? "It has other tokens: choose from the table beside it." : "";
    page.tables[at].show({
      reading, distribution: distributions[at], full, vocabulary: pane.vocabulary,
      pending: pane.vocabulary.pending(ids), reference: intact ?? other, chosen: same ? following ?? null : null,
      usable: same, note,
    });
  });
}

// Stand after the token number `index` of the text that is shown; what comes later stays.
function go(index) {
  stop();
  page.cursor = path(page.tip)[index];
  byId("text").value = page.panes[0].vocabulary.text(tokensOf(page.cursor));
  changed();
}

function choose(id) {
  stop();
  append(id);
  changed();
}

function append(id) {
  page.cursor = page.tree.add(page.cursor, id);
  path(page.cursor).forEach((node) => { node.typed = false; });
  page.tip = tipOf(page.cursor, page.tip);
  byId("text").value = page.panes[0].vocabulary.text(tokensOf(page.cursor));
}

// Choose one token as the settings say. Returns whether the text can go on.
async function step() {
  await changed();
  const { reading, pane } = page.readings[0] ?? {};
  if (!reading || page.cursor.depth >= pane.info.longest) {
    if (reading) status(`The text has ${page.cursor.depth} tokens, the most that are shown.`, true);
    return false;
  }
  const { probabilities, kept } = filtered(reading.logits, reading.order, page.sliders.settings);
  const rank = drawn(probabilities, kept, uniform(Number(byId("seed").value), page.cursor.depth));
  const id = reading.order[rank];
  append(id);
  await changed();
  return !pane.info.ends.includes(id);
}

async function run() {
  if (page.running) return stop();
  page.running = true;
  byId("run").textContent = "Stop";
  while (page.running) {
    const [more] = await Promise.all([step(), new Promise((done) => setTimeout(done, SHOWN_STEP))]);
    if (!more) stop();
  }
}

function stop() {
  page.running = false;
  byId("run").textContent = "Run";
}

function back() {
  if (page.cursor.depth > 1) go(page.cursor.depth - 2);
}

// The text was typed: it joins the tree where it is the same as what is there.
async function typed() {
  stop();
  const pane = page.panes[0];
  try {
    const before = page.tip;
    page.cursor = page.tip = page.tree.follow(await api.encode(pane.name, byId("text").value));
    page.tree.forget(before, page.cursor);
    if (pane.info.translates) page.source = byId("source").value;
    await changed();
  } catch (error) {
    status(error.message, true);
  }
}

function listen() {
  let timer;
  for (const id of ["text", "source"]) {
    byId(id).addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(typed, TYPING); });
  }
  byId("step").onclick = () => { stop(); step(); };
  byId("run").onclick = run;
  byId("back").onclick = back;
  byId("seed").onchange = remember;
  for (const id of ["model", "compare"]) {
    byId(id).onchange = async () => {
      stop();
      const text = page.panes[0].vocabulary.text(tokensOf(page.cursor));
      const before = page.panes[0];
      try {
        await openPanes();
        if (!page.panes[0].same(before)) {
          page.tree = new Tree();
          page.cursor = page.tip = page.tree.follow(await api.encode(page.panes[0].name, text));
        }
        await changed();
      } catch (error) {
        status(error.message, true);
      }
    };
  }
  for (const button of document.querySelectorAll("[data-export]")) {
    button.onclick = () => { byId("export").open = false; exportAs(button.dataset.export, page); };
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("textarea, select, input[type=number]")) return;
    const act = { s: byId("step").onclick, r: run, b: back, g: () => page.sliders.set({ greedy: !page.sliders.settings.greedy }) };
    const found = act[event.key.toLowerCase()];
    if (!found) return;
    event.preventDefault();
    found();
  });
}

// Put what is shown into the address, so that it can be copied.
function remember() {
  clearTimeout(page.remembering);
  page.remembering = setTimeout(async () => {
    const pane = page.panes[0];
    const ids = tokensOf(page.cursor);
    const text = pane.vocabulary.text(ids);
    const usual = await api.encode(pane.name, text);
    const { temperature, topK, topP, minP, greedy } = page.sliders.settings;
    const { kind, layer, head } = page.looking;
    const first = byId("model").options[0].value;
    history.replaceState(null, "", linked({
      text, source: page.source, model: pane.name === first ? "" : pane.name, compare: page.panes[1]?.name ?? "",
      ids: usual.join() === ids.join() ? [] : ids, off: [...page.off].sort(), colour: page.colour, greedy,
      kind: kind === usualKind(pane.info.kinds) ? "" : kind, layer, head, temperature, top_k: topK, top_p: topP, min_p: minP,
      seed: Number(byId("seed").value),
    }));
  }, 250);
}

start().catch((error) => status(error.message, true));
