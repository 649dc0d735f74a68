// One network on the page: what it is called, its vocabulary, and its view of the text.

import * as api from "./api.js";
import { Vocabulary } from "./vocabulary.js";

export class Pane {
  static async open(name) {
    const info = await api.model(name);
    const pane = new Pane();
    pane.name = name;
    pane.info = info;
    pane.vocabulary = new Vocabulary(await api.vocabulary(name), info.vocabulary, info.first_spaces);
    return pane;
  }

  // The question that reads a text; `off` is a set of "kind.layer.head", of which this network may not have all.
  question(ids, source, off) {
    const heads = [...off].sort().map((name) => name.split(".")).map(([kind, layer, head]) => [kind, +layer, +head]);
    return { model: this.name, ids, source: this.info.translates ? source : null, off: heads.filter((head) => this.has(...head)) };
  }

  // Whether this network has a head that can be knocked out.
  has(kind, layer, head) {
    const [layers, heads] = this.info.kinds[kind] ?? [0, 0];
    return this.info.silences && layer < layers && head < heads;
  }

  read(question) {
    return api.read(question, this.info.vocabulary);
  }

  // The tokens of a text of another network's tokens.
  async translated(ids, other) {
    return this.same(other) ? ids : api.encode(this.name, other.vocabulary.text(ids));
  }

  same(other) {
    this.checked ??= new Map();
    if (!this.checked.has(other)) this.checked.set(other, other === this || this.vocabulary.equals(other.vocabulary));
    return this.checked.get(other);
  }

  // The tokens as pieces to be shown, with the bytes of a character that several of them share.
  pieces(ids) {
    return ids.map((id, at) => this.vocabulary.piece(id, this.vocabulary.pending(ids.slice(Math.max(0, at - 4), at))));
  }
}
