// Numbers as people read them.

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  const [size, unit] = count < 1e6 ? [count / 1e3, "kB"] : count < 1e9 ? [count / 1e6, "MB"] : [count / 1e9, "GB"];
  return `${size.toPrecision(3)} ${unit}`;
}

export const seconds = (time) => (time < 1 ? `${(time * 1000).toFixed(0)} ms` : `${time.toFixed(1)} s`);

export const score = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));

/** Fill a <dl> with names and values. */
export function facts(list, values) {
  list.replaceChildren(...Object.entries(values).map(([name, value]) => {
    const pair = document.createElement("div");
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    pair.append(term, text);
    return pair;
  }));
}
