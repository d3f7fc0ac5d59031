// The page: has the worker sample what is chosen, and shows and saves what comes back.

const [, H, W] = model.shape;
const SLOW = 60; // seconds from which the page warns

let worker = null;
let perImage = 0; // seconds of one evaluation of one picture
let run = null; // the walk that is shown: its choices and frames
let playing = 0;

/** Seconds in words. */
function duration(s) {
  if (s < 1) return "less than a second";
  if (s < 90) return `${Math.round(s)} second${Math.round(s) === 1 ? "" : "s"}`;
  if (s < 5400) return `${Math.round(s / 60)} minutes`;
  return `${(s / 3600).toFixed(1)} hours`;
}

/** What depends on the choices: the values beside sliders, and the time expected. */
function refresh() {
  $("eta-row").hidden = $("sampler").value !== "DDIM";
  $("eta-value").textContent = $("eta").value;
  $("scale-value").textContent = $("scale").value;
  if (model.text) refreshText();
  if (!perImage || !$("form").checkValidity()) return;
  const { n, sampler, steps, scale, y } = choices();
  const seconds = perImage * evaluations(sampler, steps, n, y && scale !== 1);
  const slow = seconds > SLOW;
  $("expected").textContent = slow
    ? `This network is large for a browser: about ${duration(seconds)}. Fewer pictures or steps take less.`
    : `Takes about ${duration(seconds)} here.`;
  $("expected").classList.toggle("warn", slow);
}

// --- sampling ---------------------------------------------------------------------------------------------

function say(text, warn = false) {
  $("status").textContent = text;
  $("status").classList.toggle("warn", warn);
}

/** idle, busy, or failed: what may be pressed; the body's data-state is for tests and styles. */
function enter(state) {
  document.body.dataset.state = state;
  $("go").setAttribute("aria-disabled", state !== "idle"); // not disabled, which would lose the focus
  $("stop").hidden = state !== "busy";
  if (state !== "busy") $("left").textContent = "";
}

function sample() {
  const asked = choices();
  clearInterval(playing);
  playing = 0;
  run = { ...asked, frames: [], began: performance.now() };
  enter("busy");
  say(`Sampling ${asked.n} picture${asked.n === 1 ? "" : "s"} in ${asked.steps} steps`);
  $("progress").value = 0;
  $("after").hidden = true;
  arrange();
  $("pictures").replaceChildren(...Array.from({ length: asked.n }, (_, k) => tile(k)));
  if ($("result").offsetTop > $("form").offsetTop) $("result").scrollIntoView({ behavior: "smooth" }); // on a phone
  worker.postMessage({ kind: "sample", ...asked });
}

/** The place of picture k: a button that saves it. */
function tile(k) {
  const words = caption(run, k);
  const canvas = build("canvas", { width: W, height: H });
  const label = `Picture ${k + 1}${words ? `, ${words}` : ""}: save as PNG`;
  const text = build("span", { textContent: words, hidden: run.rows?.length === 1 });
  const button = build("button", { type: "button", title: "Save as PNG", label }, canvas, text);
  button.onclick = () => canvas.toBlob((blob) => save(blob, `picture-${run.seed}-${k}.png`));
  return button;
}

/** As many columns as fit, so that the rows are about equally long. */
function arrange() {
  if (!run) return;
  const width = $("pictures").clientWidth;
  const fit = Math.max(1, Math.floor(width / (width < 420 ? 72 : 104)));
  $("pictures").style.setProperty("--columns", Math.ceil(run.n / Math.ceil(run.n / fit)));
}

function draw(bytes) {
  const size = 4 * H * W;
  document.querySelectorAll("#pictures canvas").forEach((canvas, k) => {
    const part = bytes.subarray(k * size, (k + 1) * size);
    canvas.getContext("2d").putImageData(new ImageData(part, W, H), 0, 0);
  });
}

const HANDLERS = {
  ready({ seconds }) {
    perImage = seconds;
    say("Ready.");
    enter("idle");
    refresh();
  },
  progress({ done, of }) {
    const spent = (performance.now() - run.began) / 1000;
    $("progress").value = done / of;
    $("left").textContent = spent > 1 ? `${duration((spent / done) * (of - done))} left` : "";
  },
  frame(frame) {
    run.frames.push(frame);
    if (document.body.dataset.state === "busy") requestAnimationFrame(() => draw(run.frames.at(-1)[$("view").value]));
  },
  done({ seconds, perImage: measured }) {
    perImage = measured;
    $("progress").value = 1;
    $("step").max = run.frames.length - 1;
    $("command").textContent = command(run);
    $("after").hidden = false;
    seek(run.frames.length - 1);
    say(`${run.n} picture${run.n === 1 ? "" : "s"} in ${seconds < 10 ? `${seconds.toFixed(1)} seconds` : duration(seconds)}.`);
    enter("idle");
    refresh();
  },
  stopped() {
    $("progress").value = 0;
    say("Stopped.");
    enter("idle");
  },
  gif({ blob }) {
    $("gif").disabled = false;
    save(blob, `film-${run.seed}.gif`);
  },
  failed({ why }) {
    say(`This browser cannot run the network: ${why}`, true);
    enter("failed");
  },
};

// --- looking and saving -----------------------------------------------------------------------------------

/** Show frame k of the walk. */
function seek(k) {
  $("step").value = k;
  $("step-value").textContent = `${run.frames[k].step} of ${run.steps}`;
  draw(run.frames[k][$("view").value]);
}

function play() {
  clearInterval(playing);
  let k = 0;
  playing = setInterval(() => {
    seek(k++);
    if (k === run.frames.length) clearInterval(playing);
  }, Math.max(50, 2500 / run.frames.length));
}

function save(blob, name) {
  const link = build("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/** All pictures of a frame as one sheet. */
function sheetOf(bytes) {
  const columns = columnsOf(run.n, model.kinds);
  return sheet(bytes, run.n, H, W, columns, enlargement(W, columns));
}

function savePng() {
  const { width, height, data } = sheetOf(run.frames[$("step").valueAsNumber][$("view").value]);
  const canvas = build("canvas", { width, height });
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
  canvas.toBlob((blob) => save(blob, `pictures-${run.seed}.png`));
}

function saveGif() {
  const sheets = run.frames.map((frame) => sheetOf(frame[$("view").value]));
  const delays = sheets.map((_, k) => (k + 1 === sheets.length ? 200 : 7)); // hundredths of a second
  const { width, height } = sheets[0];
  $("gif").disabled = true;
  worker.postMessage({ kind: "gif", frames: sheets.map(({ data }) => data), width, height, delays });
}

/** The notices of third parties, which are packed. */
async function showNotices() {
  $("notices-text").textContent = new TextDecoder().decode(await unpacked($("notices").textContent));
  $("notices-text").hidden = false;
  $("notices-button").hidden = true;
}

/** Start the worker, which unpacks the network; its text is dropped from the page. */
async function start() {
  if (!globalThis.WebAssembly || !globalThis.DecompressionStream) {
    return HANDLERS.failed({ why: "it is too old; WebAssembly or DecompressionStream is missing" });
  }
  const texts = Object.fromEntries(["runtime", "network", "worker"].map((id) => [id, $(id).textContent]));
  ["runtime", "network", "worker"].forEach((id) => $(id).remove());
  const script = new Blob([await unpacked(texts.worker)], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(script));
  worker.onmessage = ({ data }) => HANDLERS[data.kind](data);
  worker.onerror = (event) => HANDLERS.failed({ why: event.message || "its worker did not start" });
  worker.postMessage({ kind: "open", model, runtime: texts.runtime, network: texts.network });
}

$("form").addEventListener("input", refresh);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (document.body.dataset.state === "idle") sample();
});
$("stop").onclick = () => worker.postMessage({ kind: "stop" });
$("dice").onclick = () => ($("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0] % 1000000));
$("step").oninput = () => seek($("step").valueAsNumber);
$("view").onchange = () => seek($("step").valueAsNumber);
$("play").onclick = play;
$("png").onclick = savePng;
$("gif").onclick = saveGif;
addEventListener("resize", arrange);
$("notices-button").onclick = showNotices;

prepare();
refresh();
start();
