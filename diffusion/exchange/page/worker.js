// The worker: opens the network with ONNX Runtime and walks, so that the page stays alive. `ort` is ONNX Runtime.
//
// Messages in:  { kind: "open", model, runtime, network }, { kind: "sample", ...choices }, { kind: "stop" },
//               { kind: "gif", frames, width, height, delays }
// Messages out: { kind: "ready", seconds }, { kind: "progress", done, of }, { kind: "frame", step, x, x0 },
//               { kind: "done", seconds, perImage }, { kind: "stopped" }, { kind: "gif", blob }, { kind: "failed", why }

const SLICE = 16; // most pictures per call of the network: more need memory, and are no faster on one thread
const PATIENCE = 0.5; // seconds of a call, after which messages come in
const FRAMES = 60; // frames kept of a walk

let model = null;
let session = null;
let slice = SLICE;
let stopping = false;

class Stopped extends Error {}

onmessage = async ({ data }) => {
  if (data.kind === "stop") {
    stopping = true;
    return;
  }
  try {
    await { open, sample, gif: film }[data.kind](data);
  } catch (error) {
    if (error instanceof Stopped) postMessage({ kind: "stopped" });
    else postMessage({ kind: "failed", why: String(error?.message ?? error) });
  }
};

/** Open the network, and measure the seconds of one evaluation of one picture. */
async function open({ model: given, runtime, network }) {
  model = given;
  Object.assign(ort.env.wasm, { numThreads: 1, proxy: false, wasmBinary: await unpacked(runtime) });
  session = await ort.InferenceSession.create(await unpacked(network), { executionProviders: ["wasm"] });
  const [C, H, W] = model.shape;
  const nothing = new Float32Array((model.selfCondition ? 2 : 1) * C * H * W);
  await evaluate(nothing, 1, 1, null, () => false); // the first call allocates
  let [seconds, spent] = [Infinity, 0];
  for (let k = 0; k < 5 && spent < 0.5; k++) {
    const began = performance.now();
    await evaluate(nothing, 1, 1, null, () => false);
    seconds = Math.min(seconds, (performance.now() - began) / 1000);
    spent += (performance.now() - began) / 1000;
  }
  slice = Math.max(1, Math.min(SLICE, Math.floor(PATIENCE / seconds)));
  postMessage({ kind: "ready", seconds });
}

/** The network's output for some rows; y holds a label, a context vector or tokens per row, or is null. */
async function evaluate(x, rows, clock, y, keep) {
  const [C, H, W] = model.shape;
  const channels = (model.selfCondition ? 2 : 1) * C;
  const feeds = {
    x: new ort.Tensor("float32", x, [rows, channels, H, W]),
    clock: new ort.Tensor("float32", new Float32Array(rows).fill(clock), [rows]),
  };
  if (model.kinds || model.text) {
    const kept = Uint8Array.from({ length: rows }, (_, row) => keep(row));
    feeds.keep = new ort.Tensor("bool", kept, [rows]);
    if (model.context) {
      const values = new Float32Array(rows * model.kinds);
      if (y) for (let row = 0; row < rows; row++) values.set(y[row], row * model.kinds);
      feeds.y = new ort.Tensor("float32", values, [rows, model.kinds]);
    } else {
      const width = model.text ? [model.text.length] : []; // of a row
      const values = new BigInt64Array(rows * (width[0] ?? 1));
      if (y) y.slice(0, rows).flat().forEach((v, k) => (values[k] = BigInt(v)));
      feeds.y = new ort.Tensor("int64", values, [rows, ...width]);
    }
  }
  return (await session.run(feeds)).out.data;
}

/** Let messages come in, "stop" above all. */
function breathe() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(0);
  });
}

/**
 * Sample n pictures.
 *
 * @param choices n, seed (text), sampler, options (of the sampler), steps, scale, y (n labels, context vectors or texts
 *   of tokens, null), negative (tokens of a negative prompt, or null)
 */
async function sample({ n, seed, sampler, options, steps, scale, y, negative }) {
  stopping = false;
  const began = performance.now();
  const [C, H, W] = model.shape;
  const size = C * H * W;
  const of = evaluations(sampler, steps, n, y && scale !== 1);
  let done = 0;

  async function net(x, rows, clock, keep) {
    const width = x.length / rows;
    let out = null;
    for (let from = 0; from < rows; from += slice) {
      const to = Math.min(from + slice, rows);
      const told = (row) => (negative && row < rows - n ? negative : y[row % n]);
      const part = y && Array.from({ length: to - from }, (_, k) => told(from + k));
      const found = await evaluate(x.slice(from * width, to * width), to - from, clock, part, (k) => keep(from + k));
      out ??= new Float32Array((found.length / (to - from)) * rows);
      out.set(found, (found.length / (to - from)) * from);
      done += to - from;
      postMessage({ kind: "progress", done, of });
      await breathe();
      if (stopping) throw new Stopped();
    }
    return out;
  }

  const noise = pictureNoise(BigInt(seed), n, size);
  const start = noise().map((v) => model.priorStd * v);
  const levels = model.walks[steps].map((k) => levelOf(model.levels[k]));
  const every = Math.ceil(steps / FRAMES);
  const frame = (step, x, x0) => {
    if (step % every && step !== steps) return;
    const [mine, guess] = [toBytes(model, x, n), toBytes(model, x0, n)];
    postMessage({ kind: "frame", step, x: mine, x0: guess }, [mine.buffer, guess.buffer]);
  };
  frame(0, start, new Float32Array(n * size));
  await walk(sampler, options, denoiser(model, net, n, scale, Boolean(y), Boolean(negative)), start, levels, noise, frame);
  const seconds = (performance.now() - began) / 1000;
  postMessage({ kind: "done", seconds, perImage: seconds / done });
}

/** An animated GIF of frames, given as RGBA bytes. */
async function film({ frames, width, height, delays }) {
  postMessage({ kind: "gif", blob: gif(frames, width, height, delays) });
}
