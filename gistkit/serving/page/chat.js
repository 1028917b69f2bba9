// One side of the comparison: a conversation, its answers as they come, and what they cost.

import { stream } from "./api.js";
import { bytes, facts, seconds } from "./show.js";

export class Side {
  constructor(name) {
    this.talk = document.getElementById(`talk-${name}`);
    this.facts = document.getElementById(`facts-${name}`);
    this.turns = [];
  }

  clear() {
    this.turns = [];
    this.talk.replaceChildren();
    this.facts.replaceChildren();
  }

  /** Ask, show the answer as it comes; `how` is what this side adds to the request. */
  async ask(input, how, { instruction, model, maxTokens, signal }) {
    this.#say("asked", input);
    const answer = this.#say("answered", "");
    // all at the end and at once, so that a screen reader hears sentences and not syllables
    this.talk.setAttribute("aria-busy", "true");
    const begun = performance.now();
    let first = null;
    let usage = null;
    let used = null;
    try {
      const events = stream("v1/chat/completions", {
        model,
        messages: [
          { role: "system", content: instruction },
          ...this.turns,
          { role: "user", content: input },
        ],
        max_tokens: maxTokens,
        temperature: 0,
        stream_options: { include_usage: true },
        ...how,
      }, signal);
      for await (const event of events) {
        usage = event.usage ?? usage;
        used ??= event.gist ?? null;
        const text = event.choices?.[0]?.delta?.content;
        if (!text) continue;
        first ??= performance.now();
        answer.textContent += text;
        this.talk.scrollTop = this.talk.scrollHeight;
      }
      this.turns.push({ role: "user", content: input }, { role: "assistant", content: answer.textContent });
      if (how.gist !== "off" && used && used.status !== "used") {
        this.#say("failed", `Answered from the full prompt: ${used.reason}.`);
      }
      this.#tell(begun, first, usage);
    } catch (error) {
      if (error.name === "AbortError") answer.textContent += " (stopped)";
      else this.#say("failed", error.message);
    } finally {
      this.talk.removeAttribute("aria-busy");
    }
  }

  #say(kind, text) {
    const line = document.createElement("p");
    line.className = kind;
    line.textContent = text;
    this.talk.append(line);
    this.talk.scrollTop = this.talk.scrollHeight;
    return line;
  }

  #tell(begun, first, usage) {
    const now = performance.now();
    const count = usage?.completion_tokens ?? 0;
    const decoding = (now - (first ?? begun)) / 1000;
    facts(this.facts, {
      "first token": first === null ? "none" : seconds((first - begun) / 1000),
      speed: count > 1 && decoding > 0 ? `${((count - 1) / decoding).toFixed(0)} tokens/s` : "–",
      prompt: usage ? `${usage.prompt_tokens} tokens` : "–",
      KV: usage?.kv_bytes === undefined ? "–" : bytes(usage.kv_bytes),
    });
  }
}
