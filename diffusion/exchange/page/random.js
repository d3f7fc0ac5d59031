// The noise of a picture as a function of (seed, picture number), the same numbers as Python's to rounding:
// diffusion/noise/philox.py and draws.py, i.e. a hashed seed, Philox4x32-10 and Box-Muller.

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

/** The upper and lower 32 bits of the product of two 32-bit words. */
function product(a, b) {
  const low = (a & 0xffff) * (b & 0xffff);
  const cross = (a >>> 16) * (b & 0xffff) + (low >>> 16);
  const middle = (a & 0xffff) * (b >>> 16) + (cross & 0xffff);
  const upper = (a >>> 16) * (b >>> 16) + Math.floor(cross / 0x10000) + Math.floor(middle / 0x10000);
  return [upper >>> 0, Math.imul(a, b) >>> 0];
}

/** Philox4x32-10 (Salmon et al. 2011): four random words of a counter of four words. */
function philox(counter, low, high) {
  let [a, b, c, d] = counter;
  for (let round = 0; round < 10; round++) {
    const [over, under] = product(a, 0xd2511f53);
    const [up, down] = product(c, 0xcd9e8d57);
    [a, b, c, d] = [(up ^ b ^ low) >>> 0, down, (over ^ d ^ high) >>> 0, under];
    low = (low + 0x9e3779b9) >>> 0;
    high = (high + 0xbb67ae85) >>> 0;
  }
  return [a, b, c, d];
}

/** The numbers of one draw of a picture: two words give the radius and the angle of two normal numbers. */
function fillNormal(out, key, picture, draw) {
  const low = Number(key & 0xffffffffn);
  const high = Number(key >> 32n);
  for (let i = 0; i < out.length; i += 4) {
    const words = philox([i / 4, draw, picture, 0], low, high);
    for (let pair = 0; pair < 4; pair += 2) {
      const radius = Math.sqrt(-2 * Math.log((words[pair] + 0.5) / 0x100000000));
      const angle = (2 * Math.PI * (words[pair + 1] + 0.5)) / 0x100000000;
      if (i + pair < out.length) out[i + pair] = radius * Math.cos(angle);
      if (i + pair + 1 < out.length) out[i + pair + 1] = radius * Math.sin(angle);
    }
  }
}

/** A function noise() -> Float32Array of the next draw of n pictures of `size` numbers. */
function pictureNoise(seed, n, size) {
  const key = seedOf(seed);
  let draw = 0;
  return () => {
    const out = new Float32Array(n * size);
    for (let k = 0; k < n; k++) fillNormal(out.subarray(k * size, (k + 1) * size), key, k, draw);
    draw++;
    return out;
  };
}
