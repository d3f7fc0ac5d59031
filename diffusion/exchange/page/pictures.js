// Pictures as bytes, for the page and its worker: values to 8 bits, and several pictures as one.

/**
 * Values of pictures (n, C, H, W) as RGBA bytes (n, H, W, 4); -1 .. 1 become 0 .. 255.
 *
 * @param model shape, bands (the channels shown: 1, 3 or 4 of them) and colours (256 RGB triples for one band, or null)
 */
function toBytes(model, x, n) {
  const [C, H, W] = model.shape;
  const pixels = H * W;
  const out = new Uint8ClampedArray(n * pixels * 4);
  for (let k = 0; k < n; k++) {
    for (let i = 0; i < pixels; i++) {
      const at = 4 * (k * pixels + i);
      const values = model.bands.map((band) => eightBit(x[(k * C + band) * pixels + i]));
      const rgb = values.length > 1 ? values : model.colours ? model.colours[values[0]] : [values[0], values[0], values[0]];
      out[at] = rgb[0];
      out[at + 1] = rgb[1];
      out[at + 2] = rgb[2];
      out[at + 3] = values.length === 4 ? values[3] : 255;
    }
  }
  return out;
}

function eightBit(v) {
  return Math.round(Math.min(1, Math.max(0, (v + 1) / 2)) * 255);
}

/** How many pictures stand side by side in a saved sheet: one column per class if that is a sensible number. */
function columnsOf(n, kinds) {
  return kinds >= 2 && kinds <= 20 ? Math.min(n, kinds) : Math.ceil(Math.sqrt(n));
}

/**
 * A sheet of pictures, each pixel enlarged to a square, with a gap of one such square between pictures.
 *
 * @param bytes RGBA (n, H, W, 4)
 * @returns { width, height, data } with data RGBA; the gap is transparent
 */
function sheet(bytes, n, H, W, columns, enlarge) {
  const rows = Math.ceil(n / columns);
  const width = (columns * (W + 1) - 1) * enlarge;
  const height = (rows * (H + 1) - 1) * enlarge;
  const source = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const data = new Uint32Array(width * height);
  for (let k = 0; k < n; k++) {
    const left = (k % columns) * (W + 1) * enlarge;
    const top = Math.floor(k / columns) * (H + 1) * enlarge;
    for (let y = 0; y < H * enlarge; y++) {
      for (let x = 0; x < W * enlarge; x++) {
        const from = k * H * W + Math.floor(y / enlarge) * W + Math.floor(x / enlarge);
        data[(top + y) * width + left + x] = source[from];
      }
    }
  }
  return { width, height, data: new Uint8ClampedArray(data.buffer) };
}

/** The enlargement at which a picture is at least 64 pixels wide and a sheet at most 1,600. */
function enlargement(W, columns) {
  return Math.max(1, Math.min(Math.ceil(64 / W), Math.floor(1600 / (columns * (W + 1)))));
}
