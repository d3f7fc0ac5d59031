// The noise of a picture: the numbers that torch.randn draws on a CPU, to 1e-6, as a function of (seed, picture number).
// The same as diffusion/noise/draws.py: a hashed seed, mt19937, and Box-Muller in blocks of 16.

const WORD = (1n << 64n) - 1n;

/** One 63-bit seed of a whole key, hashed by splitmix64. @param {...(number|bigint)} key */
function seedOf(...key) {
  let state = 0n;
  for (const part of key) {
    state = (state + BigInt(part) + 0x9e3779b97f4a7c15n) & WORD;
    state = ((state ^ (state >> 30n)) * 0xbf58476d1ce4e5b9n) & WORD;
    state = ((state ^ (state >> 27n)) * 0x94d049bb133111ebn) & WORD;
    state ^= state >> 31n;
  }
  return state >> 1n;
}

/** The Mersenne twister mt19937, seeded by the lower 32 bits of a seed as torch does. */
class Twister {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.at = 624;
    this.state[0] = Number(seed & 0xffffffffn);
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, before ^ (before >>> 30)) + i;
    }
  }

  /** The next 32 bits. */
  next() {
    if (this.at === 624) this.refill();
    let v = this.state[this.at++];
    v ^= v >>> 11;
    v ^= (v << 7) & 0x9d2c5680;
    v ^= (v << 15) & 0xefc60000;
    return (v ^ (v >>> 18)) >>> 0;
  }

  refill() {
    const s = this.state;
    for (let i = 0; i < 624; i++) {
      const v = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
      s[i] = s[(i + 397) % 624] ^ (v >>> 1) ^ (v & 1 ? 0x9908b0df : 0);
    }
    this.at = 0;
  }

  /** A uniform number in [0, 1) with 24 bits, as torch draws float32. */
  uniform() {
    return (this.next() & 0xffffff) / 0x1000000;
  }
}

/** N(0, 1) numbers in order; each call of `fill` is one call of torch.randn with the same generator. */
class Normal {
  constructor(seed) {
    this.twister = new Twister(seed);
  }

  /** Fill an array of at least 16 numbers; if their number is no multiple of 16, the last 16 are drawn twice. */
  fill(out) {
    for (let i = 0; i < out.length; i++) out[i] = this.twister.uniform();
    for (let i = 0; i + 16 <= out.length; i += 16) boxMuller(out, i);
    if (out.length % 16) {
      const last = out.length - 16;
      for (let i = last; i < out.length; i++) out[i] = this.twister.uniform();
      boxMuller(out, last);
    }
    return out;
  }
}

/** Turn 16 uniform numbers into normal ones: the first 8 give the radius, the others the angle. */
function boxMuller(values, start) {
  for (let i = start; i < start + 8; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - values[i]));
    const angle = 2 * Math.PI * values[i + 8];
    values[i] = radius * Math.cos(angle);
    values[i + 8] = radius * Math.sin(angle);
  }
}

/** A function noise() -> Float32Array of n pictures of `size` numbers, each from its own generator. */
function pictureNoise(seed, n, size) {
  const generators = Array.from({ length: n }, (_, k) => new Normal(seedOf(seed, k)));
  return () => {
    const out = new Float32Array(n * size);
    generators.forEach((generator, k) => generator.fill(out.subarray(k * size, (k + 1) * size)));
    return out;
  };
}
