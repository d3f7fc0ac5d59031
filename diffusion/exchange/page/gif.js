// An animated GIF from RGBA frames: one palette for all, LZW, endless repetition. Format: GIF89a.

/**
 * The bytes of a GIF.
 *
 * @param frames RGBA bytes, all width x height; transparent pixels become white
 * @param delays hundredths of a second, one per frame
 */
function gif(frames, width, height, delays) {
  const { colours, indexOf } = palette(frames);
  const bytes = [];
  const word = (v) => bytes.push(v & 255, v >> 8);
  const text = (v) => bytes.push(...[...v].map((c) => c.charCodeAt(0)));
  text("GIF89a");
  word(width);
  word(height);
  bytes.push(0xf7, 0, 0); // a global table of 256 colours
  for (let i = 0; i < 256; i++) bytes.push(...(colours[i] ?? [0, 0, 0]));
  bytes.push(0x21, 0xff, 11);
  text("NETSCAPE2.0");
  bytes.push(3, 1, 0, 0, 0); // repeat without end
  const parts = [Uint8Array.from(bytes)];
  frames.forEach((frame, k) => {
    const delay = delays[k];
    parts.push(Uint8Array.of(0x21, 0xf9, 4, 4, delay & 255, delay >> 8, 0, 0)); // keep the frame in place
    parts.push(Uint8Array.of(0x2c, 0, 0, 0, 0, width & 255, width >> 8, height & 255, height >> 8, 0));
    const indices = new Uint8Array(width * height);
    for (let i = 0; i < indices.length; i++) indices[i] = indexOf(...opaque(frame, i));
    parts.push(...compressed(indices));
  });
  parts.push(Uint8Array.of(0x3b));
  return new Blob(parts, { type: "image/gif" });
}

/** The colour of a pixel on white. */
function opaque(frame, i) {
  const alpha = frame[4 * i + 3];
  if (alpha === 255) return [frame[4 * i], frame[4 * i + 1], frame[4 * i + 2]];
  return [0, 1, 2].map((c) => Math.round((frame[4 * i + c] * alpha + 255 * (255 - alpha)) / 255));
}

/** At most 256 colours for all frames, exact if there are no more, else by median cut on 5 bits per channel. */
function palette(frames) {
  const exact = new Map();
  const counts = new Float64Array(32768);
  const sums = [0, 1, 2].map(() => new Float64Array(32768));
  for (const frame of frames) {
    for (let i = 0; i < frame.length / 4; i++) {
      const rgb = opaque(frame, i);
      if (exact.size <= 256) exact.set((rgb[0] << 16) | (rgb[1] << 8) | rgb[2], rgb);
      const bin = binOf(...rgb);
      counts[bin]++;
      rgb.forEach((v, c) => (sums[c][bin] += v));
    }
  }
  if (exact.size <= 256) {
    const numbers = new Map([...exact.keys()].map((key, k) => [key, k]));
    return { colours: [...exact.values()], indexOf: (r, g, b) => numbers.get((r << 16) | (g << 8) | b) };
  }
  const boxes = medianCut(counts);
  const numbers = new Uint8Array(32768);
  const colours = boxes.map((bins, k) => {
    const total = bins.reduce((sum, bin) => sum + counts[bin], 0);
    for (const bin of bins) numbers[bin] = k;
    return sums.map((sum) => Math.round(bins.reduce((s, bin) => s + sum[bin], 0) / total));
  });
  return { colours, indexOf: (r, g, b) => numbers[binOf(r, g, b)] };
}

const binOf = (r, g, b) => ((r >> 3) << 10) | ((g >> 3) << 5) | (b >> 3);

/** The used bins in at most 256 boxes: the box with the most pixels times its longest side is halved in turn. */
function medianCut(counts) {
  const side = (bin, c) => (bin >> (10 - 5 * c)) & 31;
  const box = (bins) => {
    const lengths = [0, 1, 2].map((c) => {
      const values = bins.map((bin) => side(bin, c));
      return Math.max(...values) - Math.min(...values);
    });
    const total = bins.reduce((sum, bin) => sum + counts[bin], 0);
    const longest = lengths.indexOf(Math.max(...lengths));
    return { bins, longest, total, weight: Math.sqrt(total) * lengths[longest] };
  };
  const boxes = [box([...counts.keys()].filter((bin) => counts[bin] > 0))];
  while (boxes.length < 256) {
    const next = boxes.reduce((best, one) => (one.weight > best.weight ? one : best));
    if (next.weight === 0) break;
    const bins = next.bins.sort((a, b) => side(a, next.longest) - side(b, next.longest));
    let cut = 0;
    for (let sum = 0; sum < next.total / 2; ) sum += counts[bins[cut++]];
    cut = Math.min(Math.max(cut, 1), bins.length - 1);
    boxes.splice(boxes.indexOf(next), 1, box(bins.slice(0, cut)), box(bins.slice(cut)));
  }
  return boxes.map((one) => one.bins);
}

/** Indices of 8 bits compressed by GIF's LZW, as sub-blocks of at most 255 bytes. */
function compressed(indices) {
  const [clear, end] = [256, 257];
  const codes = [];
  let [width, next, bits, filled] = [9, 258, 0, 0];
  let table = new Map();
  const put = (code) => {
    bits |= code << filled;
    for (filled += width; filled >= 8; filled -= 8, bits >>>= 8) codes.push(bits & 255);
  };
  put(clear);
  let prefix = indices[0];
  for (let i = 1; i < indices.length; i++) {
    const key = (prefix << 8) | indices[i];
    const known = table.get(key);
    if (known !== undefined) {
      prefix = known;
      continue;
    }
    put(prefix);
    prefix = indices[i];
    if (next === 4096) {
      put(clear);
      table = new Map();
      [width, next] = [9, 258];
    } else {
      if (next === 1 << width) width++;
      table.set(key, next++);
    }
  }
  put(prefix);
  if (next === 1 << width && width < 12) width++;
  put(end);
  if (filled) codes.push(bits & 255);
  const parts = [Uint8Array.of(8)];
  for (let at = 0; at < codes.length; at += 255) {
    const block = codes.slice(at, at + 255);
    parts.push(Uint8Array.of(block.length, ...block));
  }
  parts.push(Uint8Array.of(0));
  return parts;
}
