// What tokens stand for: bytes, which need not be whole characters.

const STRICT = new TextDecoder("utf-8", { fatal: true });
const LOOSE = new TextDecoder("utf-8");
const SIGNS = { " ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥" };

export class Vocabulary {
  // `buffer` is the answer of /playground/api/vocabulary.
  constructor(buffer, size, firstSpaces) {
    const lengths = new Uint32Array(buffer, 0, size);
    this.size = size;
    this.firstSpaces = firstSpaces;
    this.special = new Uint8Array(buffer, 4 * size, size);
    this.content = new Uint8Array(buffer, 5 * size);
    this.starts = new Uint32Array(size + 1);
    for (let id = 0; id < size; id++) this.starts[id + 1] = this.starts[id] + lengths[id];
  }

  equals(other) {
    return this.size === other.size && this.content.length === other.content.length
      && this.content.every((byte, at) => byte === other.content[at]);
  }

  // Bytes of text; none for a special token.
  bytes(id) {
    return this.special[id] ? new Uint8Array(0) : this.content.subarray(this.starts[id], this.starts[id + 1]);
  }

  name(id) {
    return LOOSE.decode(this.content.subarray(this.starts[id], this.starts[id + 1]));
  }

  joined(ids) {
    const pieces = ids.map((id) => this.bytes(id)).filter((bytes) => bytes.length);
    if (pieces.length && this.firstSpaces) {
      let spaces = 0;
      while (spaces < this.firstSpaces && pieces[0][spaces] === 32) spaces++;
      pieces[0] = pieces[0].subarray(spaces);
    }
    const all = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
    let at = 0;
    for (const piece of pieces) { all.set(piece, at); at += piece.length; }
    return all;
  }

  text(ids) {
    return LOOSE.decode(this.joined(ids));
  }

  // The bytes at the end of the text that begin a character without ending it.
  pending(ids) {
    const all = this.joined(ids.slice(-4));
    for (let back = 1; back <= Math.min(3, all.length); back++) {
      const byte = all[all.length - back];
      if ((byte & 0xc0) === 0x80) continue;
      const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
      return length > back ? all.slice(all.length - back) : new Uint8Array(0);
    }
    return new Uint8Array(0);
  }

  // { kind, text, whole }: kind "text", "special" or "bytes" (then `text` is hexadecimal, and `whole` the characters that
  // they complete together with the `pending` bytes before them, if they do).
  piece(id, pending = new Uint8Array(0)) {
    if (this.special[id]) return { kind: "special", text: this.name(id) || `token ${id}`, whole: "" };
    const bytes = this.bytes(id);
    const alone = decoded(bytes);
    if (alone !== null && !pending.length) return { kind: "text", text: alone, whole: "" };
    if (alone !== null && (bytes[0] & 0xc0) !== 0x80) return { kind: "text", text: alone, whole: "" };
    const together = new Uint8Array([...pending, ...bytes]);
    return { kind: "bytes", text: hexadecimal(bytes), whole: pending.length ? decoded(together) ?? "" : "" };
  }
}

// A piece in a word or two: what bytes complete, or the bytes.
export function label(piece) {
  return piece.kind === "bytes" ? piece.whole || piece.text : visible(piece.text);
}

// White space as signs, so that it can be seen; nothing as ∅.
export function visible(text) {
  return printable([...text].map((character) => SIGNS[character] ?? character).join("")) || "∅";
}

// Control characters as their pictures: they have no shape of their own, and XML refuses them.
export function printable(text) {
  const picture = (character) => String.fromCharCode(character === "\x7f" ? 0x2421 : 0x2400 + character.charCodeAt(0));
  return text.replace(/[\x00-\x1f\x7f]/g, picture).replace(/[\x80-\x9f\ufffe\uffff]/g, "\ufffd");
}

function decoded(bytes) {
  try { return STRICT.decode(bytes); } catch { return null; }
}

function hexadecimal(bytes) {
  return [...bytes].map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
}
