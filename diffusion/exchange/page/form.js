// The form: its controls, made from the model, and what is chosen in them.

const $ = (id) => document.getElementById(id);
const model = JSON.parse($("model").textContent);
model.clamp = [model.clamp[0] ?? -Infinity, model.clamp[1] ?? Infinity];
model.guidance.high ??= Infinity;
model.samplers.Heun.options.maxRatio ??= Infinity;
const MANY = 30; // classes from which there is a field to search them
const tokens = model.text && new Tokens(model.text);
const conditional = Boolean(model.kinds || model.text);

/** An element with properties, a label for screen readers, and children. */
function build(tag, { label, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (label) element.setAttribute("aria-label", label);
  element.append(...children);
  return element;
}

/** Fill the form from the model's defaults. */
function prepare() {
  $("number").value = model.number;
  $("seed").value = "0";
  $("sampler").replaceChildren(...Object.entries(model.samplers).map(([name, { label }]) => new Option(label, name)));
  $("sampler").value = model.sampler;
  $("steps").replaceChildren(...Object.keys(model.walks).map((n) => new Option(n, n)));
  $("steps").value = model.steps;
  $("eta").value = model.samplers.DDIM.options.eta;
  $("scale").max = Math.max(6, Math.ceil(2 * model.guidance.scale));
  $("scale").value = model.guidance.scale;
  $("scale-row").hidden = !conditional;
  if (!conditional) return;
  $("what").hidden = false;
  if (model.text) prepareText();
  else if (model.context) prepareMix();
  else prepareClasses();
}

/** A chip for each class; none chosen stands for all. */
function prepareClasses() {
  $("what-legend").textContent = "Classes";
  $("what-hint").textContent = "None chosen: all, one after the other.";
  const chips = model.names.map((name, k) =>
    build("label", { className: "chip" }, build("input", { type: "checkbox", value: k }), build("span", { textContent: name })),
  );
  if (chips.length > MANY) {
    const search = build("input", { type: "search", placeholder: "Search", label: "Search the classes" });
    search.oninput = () => {
      for (const chip of chips) chip.hidden = !chip.textContent.toLowerCase().includes(search.value.toLowerCase());
    };
    $("what-hint").after(search);
  }
  $("kinds").replaceChildren(build("div", { className: "chips" }, ...chips));
}

/** A slider for each feature, and the choice to take the features in turn. */
function prepareMix() {
  $("what-legend").textContent = "Mix";
  $("what-hint").textContent = model.named ? "One after the other, or a mix of your own." : "No mix leaves the choice to the network.";
  const turn = build("input", { type: "checkbox", id: "turn", checked: true });
  const words = model.named ? "each one in turn" : "no mix";
  const sliders = model.names.map((name, k) => {
    const value = build("output", { textContent: "0" });
    const input = build("input", { type: "range", min: 0, max: 1, step: 0.05, value: 0, label: name });
    input.dataset.feature = k;
    input.oninput = () => {
      value.textContent = input.value;
      turn.checked = false;
    };
    return build("label", { className: "slider" }, build("span", { textContent: name }), input, value);
  });
  const chip = build("label", { className: "chip" }, turn, build("span", { textContent: words }));
  $("kinds").replaceChildren(build("div", { className: "chips" }, chip), ...sliders);
}

/** A field for prompts, one for what pictures should not show, and a line on what of both is not read as it stands. */
function prepareText() {
  $("what-legend").textContent = "Prompts";
  $("what-hint").textContent = `One per line, one after the other. Words of training: ${tokens.frequent()}.`;
  const prompts = build("textarea", { id: "prompt", rows: 3, label: "Prompts, one per line" });
  const negative = build("input", { type: "text", id: "negative", value: model.guidance.negative });
  const unread = build("p", { className: "hint warn", id: "unread" });
  unread.setAttribute("role", "status");
  $("kinds").replaceChildren(prompts, build("label", {}, "Not in the pictures", negative), unread);
}

/** The prompts, [""] for none. */
function prompts() {
  const found = $("prompt").value.split("\n").map((line) => line.trim()).filter(Boolean);
  return found.length ? found : [""];
}

/** Say what of the prompts is not read as it stands. */
function refreshText() {
  const hints = [...prompts(), $("negative").value].map((text) => tokens.hint(text)).filter(Boolean);
  $("unread").textContent = hints.map((hint) => `${hint[0].toUpperCase()}${hint.slice(1)}.`).join(" ");
}

/**
 * The choices: n, seed, sampler, options, steps, scale, y (per picture), rows (what is cycled through; null: default);
 * of a model of text also texts (the prompts), negative (tokens, or null) and unwanted (its text).
 */
function choices() {
  const [n, sampler] = [$("number").valueAsNumber, $("sampler").value];
  const options = { ...model.samplers[sampler].options };
  if (sampler === "DDIM") options.eta = $("eta").valueAsNumber;
  const rows = chosen();
  const all = rows ?? defaults();
  const y = all && Array.from({ length: n }, (_, k) => all[k % all.length]);
  const made = { n, seed: $("seed").value, sampler, options, steps: Number($("steps").value), scale: scale(), y, rows };
  if (!model.text) return made;
  const unwanted = $("negative").value.trim();
  return { ...made, texts: prompts(), unwanted, negative: unwanted ? tokens.encode(unwanted) : null };
}

const scale = () => (conditional ? $("scale").valueAsNumber : 1);

/** The prompts, classes or the mix that are chosen; null if none are. */
function chosen() {
  if (model.text) return prompts().map((text) => tokens.encode(text));
  if (!model.kinds) return null;
  if (model.context) {
    const mix = [...document.querySelectorAll("[data-feature]")].map((input) => input.valueAsNumber);
    return $("turn").checked ? null : [mix];
  }
  const found = [...document.querySelectorAll("#kinds input:checked")].map((input) => Number(input.value));
  return found.length ? found : null;
}

/** All classes or features in turn, as Python does; null for a model without, or without names for its features. */
function defaults() {
  if (!model.kinds || (model.context && !model.named)) return null;
  const numbers = [...Array(model.kinds).keys()];
  return model.context ? numbers.map((k) => numbers.map((j) => Number(j === k))) : numbers;
}

/** What picture k of a run shows, in words. */
function caption(run, k) {
  if (run.texts) return run.texts[k % run.texts.length];
  const y = run.y?.[k];
  if (y === undefined || y === null) return "";
  if (!model.context) return model.names[y];
  const parts = y.map((v, k) => (v === 1 ? model.names[k] : v ? `${v} ${model.names[k]}` : ""));
  return parts.filter(Boolean).join(" + ") || "nothing";
}

/** A text as one word of a shell's line. */
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** The command that makes the same pictures. */
function command({ n, seed, sampler, options, steps, scale, rows, texts, unwanted }) {
  const words = ["diffusion sample RUN", `--n ${n}`, `--seed ${BigInt(seed)}`, `--sampler ${sampler}`, `--steps ${steps}`];
  if (sampler === "DDIM" && options.eta) words.push(`--eta ${options.eta}`);
  words.push(...model.samplers[sampler].words, ...(conditional ? [`--scale ${scale}`, ...model.guidance.words] : []));
  if (texts) {
    words.push(...texts.map((text) => `--prompt=${quoted(text)}`));
    if (unwanted || model.guidance.negative) words.push(`--negative=${quoted(unwanted)}`);
  } else if (rows && model.context) words.push(`--context "${rows[0].map((v, k) => `${model.keys[k]}=${v}`).join(",")}"`);
  else if (rows) words.push(`--labels ${rows.map((k) => model.keys[k]).join(",")}`);
  return words.join(" ");
}
