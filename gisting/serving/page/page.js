// The page: an instruction is compressed, asked beside its full prompt, kept or deleted.

import { ApiError, call, download, setKey } from "./api.js";
import { Side } from "./chat.js";
import { bytes, facts, score, seconds } from "./show.js";

const $ = (id) => document.getElementById(id);
const sides = { gist: new Side("gist"), full: new Side("full") };
let model = "";
let chosen = null; // the gist in use: {id, instruction}
let running = null;

/** Do something that may fail, with its button off meanwhile; a failure becomes a notice. */
async function attempt(work, button) {
  $("notice").hidden = true;
  if (button) button.disabled = true;
  try {
    await work();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) $("login").hidden = false;
    $("notice").textContent = error.message;
    $("notice").hidden = false;
  } finally {
    if (button) button.disabled = false;
  }
}

async function start() {
  const [found] = (await call("GET", "v1/models")).data;
  model = found.id;
  $("model").textContent = model;
  $("k").replaceChildren(...found.gist_tokens.map((k) => new Option(k, k)));
  await list();
}

async function compress() {
  const instruction = $("instruction").value;
  const begun = performance.now();
  const gist = await call("POST", "v1/gists", { instruction, k: Number($("k").value) });
  choose(gist, instruction, seconds((performance.now() - begun) / 1000));
  await list();
}

function choose(gist, instruction, time) {
  chosen = { id: gist.id, instruction };
  for (const side of Object.values(sides)) side.clear();
  const summary = document.createElement("p");
  summary.textContent =
    `${gist.instruction_tokens} tokens became ${gist.k}: ${bytes(gist.bytes)}, in ${time}.`;
  $("gist").replaceChildren(summary);
  $("check").hidden = false;
  showFidelity(gist.fidelity);
}

function showFidelity(fidelity) {
  $("fidelity").replaceChildren();
  if (!fidelity) return;
  const line = document.createElement("p");
  const bar = document.createElement("meter");
  bar.max = 1;
  bar.value = fidelity.score;
  bar.setAttribute("aria-hidden", "true"); // the number says the same
  line.append(`Fidelity ${score(fidelity.score)} of 1 `, bar);
  const parts = document.createElement("dl");
  parts.className = "facts";
  facts(parts, Object.fromEntries(
    Object.entries(fidelity.parts).map(([name, value]) => [name, score(value)]),
  ));
  $("fidelity").append(line, parts);
}

async function check() {
  const probes = $("probes").value.split("\n").filter((line) => line.trim());
  showFidelity(await call("POST", `v1/gists/${chosen.id}/check`, {
    instruction: chosen.instruction,
    ...(probes.length ? { probes } : {}),
  }));
  await list();
}

async function ask() {
  const input = $("input").value;
  if (!chosen) throw new ApiError("compress an instruction first", 0);
  running = new AbortController();
  $("halt").disabled = false;
  const settings = {
    instruction: chosen.instruction,
    model,
    maxTokens: Number($("max").value),
    signal: running.signal,
  };
  try {
    await Promise.all([
      sides.gist.ask(input, { gist: chosen.id }, settings),
      sides.full.ask(input, { gist: "off" }, settings),
    ]);
    $("input").value = "";
    $("input").focus();
  } finally {
    $("halt").disabled = true;
    running = null;
  }
}

async function list() {
  const gists = (await call("GET", "v1/gists")).data;
  $("none").hidden = gists.length > 0;
  $("gists").replaceChildren(...gists.map(row));
}

function row(gist) {
  const line = document.createElement("tr");
  const name = document.createElement("th");
  name.scope = "row";
  const code = document.createElement("code");
  code.textContent = gist.id.slice(0, 12);
  code.title = gist.id;
  name.append(code);
  line.append(name);
  for (const value of [gist.instruction_tokens, gist.k, bytes(gist.bytes), score(gist.fidelity?.score)]) {
    const cell = document.createElement("td");
    cell.className = "number";
    cell.textContent = value;
    line.append(cell);
  }
  const cell = document.createElement("td");
  const actions = document.createElement("div");
  const path = `v1/gists/${gist.id}`;
  const short = gist.id.slice(0, 12);
  actions.className = "row";
  const act = (text, work) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.setAttribute("aria-label", `${text} ${short}`);
    button.addEventListener("click", () => attempt(work, button));
    actions.append(button);
  };
  act(gist.pinned ? "Unpin" : "Pin", async () => {
    await call("PATCH", path, { pinned: !gist.pinned });
    await list();
    document.querySelector(`[aria-label="${gist.pinned ? "Pin" : "Unpin"} ${short}"]`)?.focus();
  });
  act("Download", () => download(`${path}/file`, `${short}.safetensors`));
  act("Delete", async () => {
    if (!confirm(`Delete the gist ${short}? The server compresses its instruction again when asked.`)) return;
    await call("DELETE", path);
    await list();
    $("instruction").focus();
  });
  cell.append(actions);
  line.append(cell);
  return line;
}

function on(form, work) {
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(work, event.submitter);
  });
}

on("compress", compress);
on("check", check);
on("ask", ask);
on("login", async () => {
  setKey($("key").value);
  $("login").hidden = true;
  await start();
});
$("halt").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => Object.values(sides).forEach((side) => side.clear()));
attempt(start);
