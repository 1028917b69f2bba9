// The page: an instruction is compressed, asked beside its full prompt, kept or deleted.

import { ApiError, call, hasKey, setKey } from "./api.js";
import { Side } from "./chat.js";
import { Table } from "./gists.js";
import { bytes, facts, score, seconds } from "./show.js";

const EXAMPLE = {
  // of the tasks that the model in this package was trained on; it knows no others
  instruction: "Everything costs nine coins. You are Nora.",
  probes: "Tom wants a cake\nA boat for Ada please\nMax asks for two hats",
  input: "Tom wants a cake",
};

const PARTS = [
  ...["divergence", "top1", "prefix", "carried", "likelihood"],
  ...["numbers", "names", "negations"],
];

const $ = (id) => document.getElementById(id);
const sides = { gist: new Side("gist"), full: new Side("full") };
const gists = new Table(attempt, say);
let model = "";
let chosen = null; // the gist in use: {id, instruction}
let running = null;

/** Do something that may fail; what asked for it is off meanwhile, but keeps the focus. */
async function attempt(work, button) {
  if (button?.getAttribute("aria-disabled") === "true") return;
  $("notice").textContent = "";
  button?.setAttribute("aria-disabled", "true");
  try {
    await work();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    $("notice").textContent = error.message;
    if (error.status !== 401) return;
    $("login").hidden = false;
    if (!hasKey()) $("notice").textContent = "This server wants an API key.";
    $("key").focus();
  } finally {
    button?.removeAttribute("aria-disabled");
  }
}

function say(text) {
  $("said").textContent = text;
}

async function start() {
  const [found] = (await call("GET", "v1/models")).data;
  model = found.id;
  $("model").textContent = model;
  $("k").replaceChildren(...found.gist_tokens.map((k) => new Option(k, k)));
  if (model === "toy") {
    for (const [name, text] of Object.entries(EXAMPLE)) $(name).value ||= text;
  }
  await gists.list();
}

async function compress() {
  const instruction = $("instruction").value;
  $("gist").textContent = "Compressing…";
  $("fidelity").replaceChildren();
  const begun = performance.now();
  let gist;
  try {
    gist = await call("POST", "v1/gists", { instruction, k: Number($("k").value) });
  } catch (error) {
    $("gist").replaceChildren();
    throw error;
  }
  const time = seconds((performance.now() - begun) / 1000);
  choose(gist, instruction, gists.has(gist.id) ? `kept since earlier, found in ${time}` : `in ${time}`);
  if (!gist.fidelity && $("probes").value.trim()) await check();
  else await gists.list();
}

function choose(gist, instruction, time) {
  chosen = { id: gist.id, instruction };
  for (const side of Object.values(sides)) side.clear();
  $("gist").textContent = `${gist.instruction_tokens} tokens became ${gist.k}: ${bytes(gist.bytes)}, ${time}.`;
  const start = instruction.trim().slice(0, 80);
  $("using").textContent = `Instruction: “${start}${start.length < instruction.trim().length ? "…" : ""}”`;
  $("check").hidden = false;
  showFidelity(gist.fidelity);
}

async function check() {
  const { id, instruction } = chosen;
  const probes = $("probes").value.split("\n").filter((line) => line.trim());
  $("fidelity").textContent = "Measuring fidelity…";
  let found = null;
  try {
    found = await call("POST", `v1/gists/${id}/check`, {
      instruction,
      ...(probes.length ? { probes } : {}),
    });
  } finally {
    if (chosen.id === id) showFidelity(found);
  }
  await gists.list();
}

function showFidelity(fidelity) {
  $("fidelity").replaceChildren();
  if (!fidelity) return;
  const line = document.createElement("p");
  const bar = document.createElement("meter");
  bar.max = 1;
  bar.value = fidelity.score;
  bar.setAttribute("aria-hidden", "true"); // the number says the same
  const inputs = fidelity.drawn ? "inputs the model made up" : "the inputs given";
  line.append(`Fidelity ${score(fidelity.score)} of 1, on ${inputs}: `, bar);
  const parts = document.createElement("dl");
  parts.className = "facts";
  facts(parts, Object.fromEntries(PARTS.map((name) => [name, score(fidelity.parts[name])])));
  $("fidelity").append(line, parts);
}

async function ask() {
  const input = $("input").value;
  if (!chosen) throw new ApiError("Compress an instruction first.", 0);
  running = new AbortController();
  $("halt").disabled = false;
  const settings = {
    instruction: chosen.instruction,
    model,
    maxTokens: Number($("max").value),
    signal: running.signal,
  };
  try {
    const first = sides.gist.ask(input, { gist: chosen.id }, settings);
    if ($("turns").checked) await first;
    await Promise.all([first, sides.full.ask(input, { gist: "off" }, settings)]);
    if ($("input").value === input) $("input").value = ""; // else the next one is being written
    $("input").focus();
  } finally {
    $("halt").disabled = true;
    running = null;
  }
}

function on(form, work) {
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(work, $(form).querySelector("button:not([type])"));
  });
  $(form).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $(form).requestSubmit();
  });
}

on("compress", compress);
on("ask", ask);
on("login", async () => {
  setKey($("key").value.trim());
  await start();
  $("login").hidden = true;
  $("instruction").focus();
});
$("check").addEventListener("click", () => attempt(check, $("check")));
$("halt").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => Object.values(sides).forEach((side) => side.clear()));
attempt(start);
