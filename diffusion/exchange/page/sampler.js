// From a network to pictures: the prediction of x_0, guidance, and the samplers; as diffusion/denoiser, guidance and
// samplers, where the sources are. Pictures of a batch lie one after the other in a Float32Array.
//
// A level of noise is { clock, alpha, sigma, cIn, fromX, fromOut }: x = alpha x_0 + sigma eps, and schedule and target
// of the model have become numbers: x_0 = fromX x + fromOut net(cIn x, clock).

/** A level of a row of the model's table. */
function levelOf([clock, alpha, sigma, cIn, fromX, fromOut]) {
  return { clock, alpha, sigma, cIn, fromX, fromOut };
}

/** The sum of coefficients times arrays, given as pairs. */
function combine(...pairs) {
  const out = new Float32Array(pairs[0][1].length);
  for (const [factor, values] of pairs) {
    if (factor !== 0) for (let i = 0; i < out.length; i++) out[i] += factor * values[i];
  }
  return out;
}

// --- the prediction ---------------------------------------------------------------------------------------

/**
 * A function denoise(x, level) -> { x0, eps, variance } for one walk, with guidance and the limit on x_0.
 *
 * @param model what the page knows of the model; see page_model.py
 * @param net net(x, rows, clock, keep) -> its output; keep(row) is false where a row has no condition
 * @param n number of pictures
 * @param scale of classifier-free guidance; 1 is off
 * @param given whether there is a condition
 * @param negative whether the rows without condition have a negative prompt instead
 */
function denoiser(model, net, n, scale, given, negative = false) {
  const [C, H, W] = model.shape;
  const size = C * H * W;
  const { low, high, rescale } = model.guidance;
  let previous = null; // x_0 of the last evaluation, for a self-conditioned network

  return async function denoise(x, t) {
    const ratio = t.sigma / t.alpha;
    const guided = given && scale !== 1 && ratio > low && ratio <= high;
    const rows = guided ? 2 * n : n; // without condition first, then with it
    const input = inputOf(x, t, rows);
    const out = await net(input, rows, t.clock, (row) => given && (!guided || negative || row >= n));
    const stride = out.length / rows; // of a picture, with the variance if the network has learned it
    const x0s = new Float32Array(rows * size);
    for (let row = 0; row < rows; row++) {
      for (let i = 0; i < size; i++) {
        x0s[row * size + i] = t.fromX * x[(row % n) * size + i] + t.fromOut * out[row * stride + i];
      }
    }
    if (model.selfCondition) previous = x0s;
    const x0 = guided ? guide(x0s) : x0s.slice();
    const eps = new Float32Array(n * size);
    for (let i = 0; i < x0.length; i++) {
      x0[i] = Math.min(model.clamp[1], Math.max(model.clamp[0], x0[i]));
      eps[i] = (x[i] - t.alpha * x0[i]) / t.sigma;
    }
    return { x0, eps, variance: stride === 2 * size ? varianceOf(out, rows - n) : null };
  };

  /** The network's input: cIn x, and the previous x_0 if it is self-conditioned. */
  function inputOf(x, t, rows) {
    const width = model.selfCondition ? 2 * size : size;
    const out = new Float32Array(rows * width);
    const before = previous ? previous.length / size : 0;
    for (let row = 0; row < rows; row++) {
      for (let i = 0; i < size; i++) out[row * width + i] = t.cIn * x[(row % n) * size + i];
      if (model.selfCondition && before) {
        const from = before > rows ? row + before - rows : row % before; // guided at some levels only
        out.set(previous.subarray(from * size, (from + 1) * size), row * width + size);
      }
    }
    return out;
  }

  /** lerp(unconditional, conditional, scale), with the contrast of the conditional one restored by `rescale`. */
  function guide(x0s) {
    const out = new Float32Array(n * size);
    for (let k = 0; k < n; k++) {
      const worse = x0s.subarray(k * size, (k + 1) * size);
      const own = x0s.subarray((n + k) * size, (n + k + 1) * size);
      const mine = out.subarray(k * size, (k + 1) * size);
      for (let i = 0; i < size; i++) mine[i] = worse[i] + scale * (own[i] - worse[i]);
      if (rescale) {
        const spread = deviation(mine);
        const factor = 1 - rescale + (spread > 0 ? (rescale * deviation(own)) / spread : rescale);
        for (let i = 0; i < size; i++) mine[i] *= factor;
      }
    }
    return out;
  }

  function varianceOf(out, first) {
    const found = new Float32Array(n * size);
    for (let k = 0; k < n; k++) {
      const start = (first + k) * 2 * size + size;
      found.set(out.subarray(start, start + size), k * size);
    }
    return found;
  }
}

/** The standard deviation, with n - 1 in the denominator. */
function deviation(values) {
  let sum = 0;
  for (const v of values) sum += v;
  const mean = sum / values.length;
  let square = 0;
  for (const v of values) square += (v - mean) ** 2;
  return Math.sqrt(square / (values.length - 1));
}

// --- the samplers -----------------------------------------------------------------------------------------
// step(denoise, x, t, s, past, noise, options) -> [x at the less noisy level s, the prediction at t]

const forwardVariance = (s, t) => t.sigma ** 2 - (t.alpha / s.alpha) ** 2 * s.sigma ** 2; // Var[x_t | x_s]
const posteriorVariance = (s, t) => (forwardVariance(s, t) * s.sigma ** 2) / t.sigma ** 2; // Var[x_s | x_t, x_0]
const halfLogSnr = (t) => Math.log(t.alpha / t.sigma);
const jump = (found, s) => combine([s.alpha, found.x0], [s.sigma, found.eps]);

/** Whether a step has no second-order correction: to the clean level, or from one with (almost) no signal. */
const firstOrderOnly = (t, s, maxRatio = Infinity) =>
  s.sigma === 0 || t.alpha === 0 || t.sigma > maxRatio * t.alpha;

const SAMPLERS = {
  /** DDIM; eta 0 is Euler's method, eta 1 is DDPM with the small variance. */
  async DDIM(denoise, x, t, s, past, noise, { eta }) {
    const found = await denoise(x, t);
    if (!eta) return [jump(found, s), found];
    const variance = eta ** 2 * posteriorVariance(s, t);
    const mean = combine([s.alpha, found.x0], [Math.sqrt(s.sigma ** 2 - variance), found.eps]);
    return [variance > 0 ? combine([1, mean], [Math.sqrt(variance), noise()]) : mean, found];
  },

  /** DDPM: ancestral sampling, with the variance small, large or learned. */
  async DDPM(denoise, x, t, s, past, noise, { variance }) {
    const found = await denoise(x, t);
    const small = posteriorVariance(s, t);
    const mean = combine([s.alpha, found.x0], [Math.sqrt(s.sigma ** 2 - small), found.eps]);
    if (s.sigma === 0) return [mean, found];
    const large = forwardVariance(s, t);
    if (variance !== "learned") {
      return [combine([1, mean], [Math.sqrt(variance === "small" ? small : large), noise()]), found];
    }
    const fresh = noise();
    const spread = found.variance.map((v) => Math.sqrt(small * (large / small) ** ((v + 1) / 2)));
    return [mean.map((v, i) => v + spread[i] * fresh[i]), found];
  },

  /** Heun's method in sigma / alpha: EDM's sampler without churn. */
  async Heun(denoise, x, t, s, past, noise, { maxRatio }) {
    const found = await denoise(x, t);
    const euler = jump(found, s);
    if (firstOrderOnly(t, s, maxRatio)) return [euler, found];
    const half = (s.alpha * (s.sigma / s.alpha - t.sigma / t.alpha)) / 2;
    const next = await denoise(euler, s);
    return [combine([1, euler], [half, next.eps], [-half, found.eps]), found];
  },

  /** DPM-Solver++ 2M, or its SDE form. */
  async DPMSolver(denoise, x, t, s, past, noise, { order, sde }) {
    const found = await denoise(x, t);
    if (firstOrderOnly(t, s)) return [jump(found, s), found];
    const h = halfLogSnr(s) - halfLogSnr(t);
    const c0 = -Math.expm1(sde ? -2 * h : -h);
    const before = order > 1 && past && past.t.alpha > 0 ? past : null;
    const c1 = before ? ((c0 / 2) * h) / (halfLogSnr(t) - halfLogSnr(before.t)) : 0;
    const parts = [
      [(s.sigma / t.sigma) * (sde ? Math.exp(-h) : 1), x],
      [s.alpha * (c0 + c1), found.x0],
    ];
    if (before) parts.push([-s.alpha * c1, before.x0]);
    if (sde) parts.push([s.sigma * Math.sqrt(-Math.expm1(-2 * h)), noise()]);
    return [combine(...parts), found];
  },
};

/** Evaluations of the network for n pictures in a walk of `steps` steps. */
function evaluations(sampler, steps, n, guided) {
  return (sampler === "Heun" ? 2 * steps - 1 : steps) * n * (guided ? 2 : 1);
}

/**
 * Walk from noise to pictures; after each step, `show(step, x, x0)`.
 *
 * @param levels the levels, noisiest first; the last one is clean
 */
async function walk(sampler, options, denoise, x, levels, noise, show) {
  let past = null;
  for (let k = 0; k + 1 < levels.length; k++) {
    const [next, found] = await SAMPLERS[sampler](denoise, x, levels[k], levels[k + 1], past, noise, options);
    past = { t: levels[k], x0: found.x0 };
    x = next;
    await show(k + 1, x, found.x0);
  }
  return x;
}
