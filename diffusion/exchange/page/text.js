// Prompts as tokens: `Tokens` of diffusion/support/tokens.py, where the rules are.

const SPACE = "\\t-\\r\\x1c- \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"; // of Python's re
const PIECE = new RegExp(`[\\p{L}\\p{N}]+|[^\\p{L}\\p{N}${SPACE}]`, "gu");
const [PAD, BYTES] = [0, 256];

/** The words and signs of a text. */
function pieces(text) {
  return text.toLowerCase().normalize("NFC").match(PIECE) ?? [];
}

/** The tokens of a vocabulary: { words, length }. */
class Tokens {
  constructor({ words, length }) {
    this.words = words;
    this.length = length;
    this.place = new Map(words.map((word, k) => [word, 1 + BYTES + k]));
  }

  /** All tokens of a text, beyond `length` too. */
  all(text) {
    const spelled = (word) => [...new TextEncoder().encode(` ${word}`)].map((byte) => 1 + byte);
    return pieces(text).flatMap((word) => this.place.get(word) ?? spelled(word));
  }

  /** The tokens of a text, as many as `length`. */
  encode(text) {
    const ids = this.all(text).slice(0, this.length);
    return [...ids, ...Array(this.length - ids.length).fill(PAD)];
  }

  /** What of a text is not read as it stands; "" if all of it is. */
  hint(text) {
    const words = pieces(text);
    if (!words.length) return "";
    const parts = [];
    const unknown = [...new Set(words.filter((word) => !this.place.has(word)))];
    if (unknown.length) {
      const names = unknown.slice(0, 3).map((word) => `\u201c${[...word].slice(0, 20).join("")}\u201d`).join(", ");
      const more = unknown.length > 3 ? ` and ${unknown.length - 3} more` : "";
      parts.push(`not among the words of training: ${names}${more}`);
    }
    const n = this.all(text).length;
    if (n > this.length) parts.push(`${n} tokens, of which the first ${this.length} are read`);
    return parts.join("; ");
  }

  /** Frequent words, for who does not know what to write. */
  frequent() {
    return this.words.filter((word) => [...word].length > 2).slice(0, 12).join(", ");
  }
}
