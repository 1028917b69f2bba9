// The table of the server's gists: pinned, taken away as files, deleted.

import { call, download } from "./api.js";
import { bytes, score } from "./show.js";

const SHOWN = 100;
const $ = (id) => document.getElementById(id);

function element(tag, role) {
  const made = document.createElement(tag);
  made.setAttribute("role", role);
  return made;
}

export class Table {
  #known = new Set();

  /** `attempt(work, button)` does what may fail; `say(text)` tells what was done. */
  constructor(attempt, say) {
    this.attempt = attempt;
    this.say = say;
  }

  /** Whether a gist was on the server when the table was last made. */
  has(id) {
    return this.#known.has(id);
  }

  async list() {
    const found = await call("GET", `v1/gists?limit=${SHOWN}`);
    this.#known = new Set(found.data.map((gist) => gist.id));
    $("none").hidden = found.data.length > 0;
    $("more").hidden = !found.has_more;
    $("gists").replaceChildren(...found.data.map((gist) => this.#row(gist)));
  }

  #row(gist) {
    // roles are said, because narrow screens lay the table out as lines
    const line = element("tr", "row");
    const name = element("th", "rowheader");
    name.scope = "row";
    const code = document.createElement("code");
    code.textContent = gist.id.slice(0, 12);
    code.title = gist.id;
    name.append(code);
    line.append(name);
    const values = {
      "prompt tokens": gist.instruction_tokens,
      k: gist.k,
      size: bytes(gist.bytes),
      fidelity: score(gist.fidelity?.score),
    };
    for (const [what, value] of Object.entries(values)) {
      const cell = element("td", "cell");
      cell.className = "number";
      cell.dataset.name = what;
      cell.textContent = value;
      line.append(cell);
    }
    const cell = element("td", "cell");
    cell.append(this.#actions(gist));
    line.append(cell);
    return line;
  }

  #actions(gist) {
    const path = `v1/gists/${gist.id}`;
    const short = gist.id.slice(0, 12);
    const actions = document.createElement("div");
    actions.className = "row";
    const act = (text, work) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.setAttribute("aria-label", `${text} ${short}`);
      button.addEventListener("click", () => this.attempt(work, button));
      actions.append(button);
    };
    act(gist.pinned ? "Unpin" : "Pin", async () => {
      await call("PATCH", path, { pinned: !gist.pinned });
      await this.list();
      this.say(`${short} is ${gist.pinned ? "no longer pinned" : "pinned"}.`);
      document.querySelector(`[aria-label="${gist.pinned ? "Pin" : "Unpin"} ${short}"]`)?.focus();
    });
    act("Download", () => download(`${path}/file`, `${short}.safetensors`));
    act("Delete", async () => {
      if (!confirm(`Delete the gist ${short}? The server compresses its instruction again when asked.`)) return;
      await call("DELETE", path);
      await this.list();
      this.say(`${short} is deleted.`);
      $("h-gists").focus();
    });
    return actions;
  }
}
