// The viewer of recorded tokens. Plain JavaScript, so that a double click on index.html is enough: data come in as
// scripts, one per recorded step, and only when they are looked at. Model text reaches the page as text nodes alone.
"use strict";

const report = (() => {
  const FIELDS = ["entropy", "covariance", "ratio", "logp", "gradient", "gradient_after", "entropy_gradient"];
  const LABELS = {
    entropy: "entropy, nats",
    covariance: "covariance",
    advantage: "advantage",
    ratio: "ratio to the sampling policy",
    logp: "log-probability, nats",
    gradient: "gradient of the objective",
    gradient_after: "gradient after the method",
    entropy_gradient: "gradient of the entropy",
    fate: "fate",
  };
  const COLOURS = ["entropy", "covariance", "advantage", "ratio", "fate"];
  const SHOWN_AT_ONCE = 200; // rows of the list
  let index = null;
  const steps = new Map(); // "run step" -> step
  const waiting = new Map(); // "run step" -> functions to call
  const chosen = { run: "", step: 0, prompt: null, sample: 0, token: null, colour: "entropy", sort: "order", search: "" };
  chosen.group = false;
  chosen.against = ""; // "run step" of the step beside it
  let more = SHOWN_AT_ONCE;

  const $ = (id) => document.getElementById(id);
  const key = (run, step) => `${run} ${step}`;

  function element(tag, text, properties = {}) {
    const made = Object.assign(document.createElement(tag), properties);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function number(x) {
    if (x === null || x === undefined || Number.isNaN(x)) return "–";
    if (x === 0 || Math.abs(x) >= 0.001) return String(Number(x.toPrecision(4)));
    return x.toExponential(2);
  }

  // What a reader sees of a token: control characters as their pictures.
  function visible(text) {
    return text.replace(/[\u0000-\u001f\u007f\u2028\u2029]/g, (c) => {
      const code = c.charCodeAt(0);
      if (c === "\n" || code > 0x7f) return "⏎";
      return String.fromCharCode(code === 0x7f ? 0x2421 : 0x2400 + code);
    });
  }

  function decode(text, Kind) {
    if (Uint8Array.fromBase64) return new Kind(Uint8Array.fromBase64(text).buffer); // ten times as fast, where it exists
    const raw = atob(text);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Kind(bytes.buffer);
  }

  // Called by data/index.js.
  function start(given) {
    index = given;
    for (const run of index.runs) $("run").append(element("option", run.name, { value: run.name }));
    for (const name of COLOURS) $("colour").append(element("option", LABELS[name], { value: name }));
    const control = (id, event, act) => $(id).addEventListener(event, () => (act($(id)), refresh()));
    control("run", "change", (box) => ((chosen.run = box.value), nearest(), reset()));
    control("step", "change", (box) => ((chosen.step = Number(box.value)), reset()));
    control("against", "change", (box) => (chosen.against = box.value));
    control("colour", "change", (box) => (chosen.colour = box.value));
    control("sort", "change", (box) => ((chosen.sort = box.value), (more = SHOWN_AT_ONCE)));
    control("search", "input", (box) => ((chosen.search = box.value), (more = SHOWN_AT_ONCE)));
    control("group", "change", (box) => (chosen.group = box.checked));
    $("shown").addEventListener("mouseover", (event) => tip(event.target));
    $("shown").addEventListener("mouseleave", () => tip(null));
    $("shown").addEventListener("click", (event) => select(event.target));
    $("shown").addEventListener("keydown", move);
    window.addEventListener("hashchange", () => (fromHash(), refresh()));
    fromHash();
    refresh();
  }

  const runOf = (name) => index.runs.find((run) => run.name === name);

  function nearest() {
    const there = runOf(chosen.run).steps.map((s) => s.step);
    if (!there.includes(chosen.step)) chosen.step = there[there.length - 1];
  }

  function reset() {
    chosen.prompt = chosen.token = null;
    more = SHOWN_AT_ONCE;
  }

  // Loads a step's data, and calls back with it.
  function load(run, step, use) {
    const name = key(run, step);
    if (steps.has(name)) return use(steps.get(name));
    if (waiting.has(name)) return void waiting.get(name).push(use);
    waiting.set(name, [use]);
    const file = runOf(run).steps.find((s) => s.step === step).file;
    const script = element("script", undefined, { src: file });
    script.onerror = () => message(`${file} could not be read; keep the folder of this page together`);
    document.head.append(script);
  }

  // Called by the data of a step.
  function add(run, step, given) {
    const made = { ...given, run, step };
    for (const name of Object.keys(given.values)) made.values[name] = decode(given.values[name], Float32Array);
    made.ids = decode(given.ids, Uint32Array);
    made.fate = given.fate ? decode(given.fate, Uint8Array) : null;
    let offset = 0;
    made.rows = given.rows.map((row, i) => {
      const whole = { ...row, i, from: offset, to: (offset += row.length) };
      whole.entropy = mean(made.values.entropy, whole.from, whole.to);
      const logp = made.values.logp ? mean(made.values.logp, whole.from, whole.to) : null;
      whole.surprise = logp === null ? null : -logp;
      return whole;
    });
    made.most = {};
    for (const name of Object.keys(made.values)) made.most[name] = largest(made.values[name]);
    made.most.advantage = Math.max(1e-9, ...made.rows.map((row) => Math.abs(row.advantage ?? 0)));
    steps.set(key(run, step), made);
    for (const use of waiting.get(key(run, step)) ?? []) use(made);
    waiting.delete(key(run, step));
  }

  function mean(values, from, to) {
    let sum = 0;
    for (let i = from; i < to; i++) sum += values[i];
    return to > from ? sum / (to - from) : null;
  }

  // The 99th percentile of the absolute values: one outlier does not bleach the others.
  function largest(values) {
    const some = [];
    for (let i = 0; i < values.length; i += Math.ceil(values.length / 20000)) {
      const size = Math.abs(values[i]);
      if (size > 0 && Number.isFinite(size)) some.push(size);
    }
    some.sort((a, b) => a - b);
    return some.length ? some[Math.min(some.length - 1, Math.floor(0.99 * some.length))] : 1;
  }

  const textOf = (data, row) => {
    row.text ??= Array.from(data.ids.subarray(row.from, row.to), (id) => data.tokens[id]).join("");
    return row.text;
  };

  function refresh() {
    toControls();
    load(chosen.run, chosen.step, (data) => {
      if (data.run !== chosen.run || data.step !== chosen.step) return;
      const rows = listed(data);
      const there = data.rows.filter((row) => row.prompt === chosen.prompt);
      const first = there.length ? there[0] : rows[0]; // of a prompt or a sample that is not there
      if (first && !there.some((row) => row.sample === chosen.sample))
        Object.assign(chosen, { prompt: first.prompt, sample: first.sample, token: null });
      toOthers();
      list(data, rows);
      show(data);
      toHash();
    });
  }

  function listed(data) {
    const wanted = chosen.search.toLowerCase();
    const rows = data.rows.filter(
      (row) => !wanted || textOf(data, row).toLowerCase().includes(wanted) || data.questions[row.question].toLowerCase().includes(wanted),
    );
    const size = (row) => row[chosen.sort] ?? -Number.MAX_VALUE; // what was not measured: last
    if (chosen.sort !== "order") rows.sort((a, b) => size(b) - size(a) || a.i - b.i);
    return rows;
  }

  function list(data, rows) {
    const items = rows.slice(0, more).map((row) => {
      const button = element("button", undefined, { type: "button" });
      const current = row.prompt === chosen.prompt && row.sample === chosen.sample;
      if (current) button.setAttribute("aria-current", "true");
      button.append(
        element("span", `reward ${number(row.reward)} · entropy ${number(row.entropy)} · ${row.length} tokens`, { className: "facts" }),
        element("span", visible(textOf(data, row).slice(0, 90).replace(/[\ud800-\udbff]$/, "")), { className: "start" }),
      );
      button.addEventListener("click", () => {
        Object.assign(chosen, { prompt: row.prompt, sample: row.sample, token: null });
        refresh();
      });
      const item = element("li");
      item.append(button);
      return item;
    });
    if (rows.length > more) {
      const item = element("li");
      const button = element("button", `${rows.length - more} more`, { type: "button" });
      button.addEventListener("click", () => ((more *= 4), refresh()));
      item.append(button);
      items.push(item);
    }
    $("list").replaceChildren(...items);
    $("count").textContent = `${rows.length} of ${data.rows.length} responses`;
  }

  function show(data) {
    const group = data.rows.filter((row) => row.prompt === chosen.prompt);
    const own = group.filter((row) => row.sample === chosen.sample);
    const parts = [];
    if (group.length) parts.push(element("p", visible(data.questions[group[0].question]), { className: "question" }));
    parts.push(legend(data));
    const columns = element("div", undefined, { className: "columns" });
    for (const row of chosen.group ? group : own) columns.append(response(data, row));
    parts.push(columns);
    $("shown").replaceChildren(...parts);
    if (!chosen.against) return;
    const [run, step] = [chosen.against.slice(0, chosen.against.lastIndexOf(" ")), Number(chosen.against.slice(chosen.against.lastIndexOf(" ") + 1))];
    load(run, step, (other) => {
      const there = other.rows.filter((row) => row.prompt === chosen.prompt);
      const box = element("section", undefined, { className: "other" });
      box.append(element("h3", `The same prompt in ${run}, step ${step}`));
      if (!there.length) box.append(element("p", "It was not drawn, or not recorded, there."));
      else {
        box.append(difference(data, group, other, there));
        const columns = element("div", undefined, { className: "columns" });
        const shown = chosen.group ? there : there.filter((row) => row.sample === chosen.sample);
        for (const row of shown) columns.append(response(other, row, own[0] && { data, row: own[0] }));
        box.append(columns);
      }
      $("shown").append(box);
    });
  }

  // The means of a prompt's responses here and there.
  function difference(data, here, other, there) {
    const table = element("table");
    const line = (cells, tag) => {
      const row = element("tr");
      cells.forEach((cell, i) => row.append(element(i ? tag : "th", cell, i ? {} : { scope: "row" })));
      table.append(row);
    };
    line(["mean of the group", `${data.run}, step ${data.step}`, `${other.run}, step ${other.step}`, "difference"], "th");
    for (const name of ["reward", "entropy", "surprise", "length"]) {
      const measured = (rows) => rows.map((row) => row[name]).filter((x) => x !== null);
      const [a, b] = [here, there].map((rows) => mean(measured(rows), 0, measured(rows).length));
      line([name, number(a), number(b), number(a === null || b === null ? null : b - a)], "td");
    }
    return table;
  }

  function legend(data) {
    const box = element("p", undefined, { className: "legend" });
    if (chosen.colour === "fate") {
      for (const [i, name] of (data.fates ?? []).entries()) box.append(element("span", name, { className: `fate fate-${i % 8}` }));
      return box;
    }
    const most = data.most[chosen.colour];
    if (most === undefined) return element("p", `${LABELS[chosen.colour]} was not recorded`, { className: "legend" });
    const diverging = chosen.colour !== "entropy";
    for (const share of diverging ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]) {
      const value = chosen.colour === "ratio" ? Math.exp(share * Math.abs(Math.log(most) || 1)) : share * most;
      const cell = element("span", number(value));
      cell.style.background = shade(share, diverging);
      box.append(cell);
    }
    return box;
  }

  const shade = (share, diverging) => {
    const size = Math.min(1, Math.abs(share));
    return `rgb(var(--${diverging && share < 0 ? "low" : "high"}) / ${(0.45 * size).toFixed(3)})`;
  };

  function background(data, row, i) {
    const name = chosen.colour;
    if (name === "advantage") return shade((row.advantage ?? 0) / data.most.advantage, true);
    const value = data.values[name]?.[i];
    if (value === undefined || Number.isNaN(value)) return "";
    if (name === "ratio") return shade(Math.log(value) / Math.abs(Math.log(data.most.ratio) || 1), true);
    return shade(value / data.most[name], name !== "entropy");
  }

  function response(data, row, against) {
    const box = element("article", undefined, { tabIndex: 0 });
    box.setAttribute("aria-label", `sample ${row.sample}; arrow keys go from token to token`);
    const facts = [`sample ${row.sample}`, `reward ${number(row.reward)}`, `advantage ${number(row.advantage)}`];
    facts.push(`entropy ${number(row.entropy)}`, `${row.length} tokens`, row.finished ? "" : "cut");
    if (row.update) facts.push(`update ${row.update + 1} of the step`); // a turn of a method has the same responses again
    box.append(element("p", facts.filter(Boolean).join(" · "), { className: "facts" }));
    const text = element("div", undefined, { className: "text" });
    box.dataset.row = row.i;
    box.dataset.step = key(data.run, data.step);
    const parted = against ? firstDifference(data, row, against) : -1;
    for (let i = row.from; i < row.to; i++) {
      const piece = data.tokens[data.ids[i]];
      const token = element("span", visible(piece));
      token.dataset.i = i;
      if (chosen.colour === "fate" && data.fate) token.className = `fate fate-${data.fate[i] % 8}`;
      else token.style.background = background(data, row, i);
      if (i - row.from === parted) token.classList.add("parted");
      text.append(token);
      if (piece.includes("\n")) text.append(element("br"));
    }
    box.append(text);
    if (data.run === chosen.run && data.step === chosen.step && row.sample === chosen.sample && chosen.token !== null) {
      const token = text.querySelector(`[data-i="${row.from + chosen.token}"]`);
      if (token) queueMicrotask(() => (mark(token), token.scrollIntoView({ block: "nearest" })));
    }
    return box;
  }

  // The first token at which two responses differ; −1 if they are equal.
  function firstDifference(data, row, { data: other, row: that }) {
    for (let t = 0; t < row.length; t++)
      if (t >= that.length || data.tokens[data.ids[row.from + t]] !== other.tokens[other.ids[that.from + t]]) return t;
    return -1;
  }

  function of(token) {
    const box = token?.closest?.("article");
    if (!box || token.dataset.i === undefined) return null;
    const data = steps.get(box.dataset.step);
    return { data, row: data.rows[Number(box.dataset.row)], i: Number(token.dataset.i) };
  }

  function tip(token) {
    const found = of(token);
    $("tip").hidden = !found;
    if (!found) return;
    const { data, row, i } = found;
    const table = element("table");
    const line = (name, value) => {
      const item = element("tr");
      item.append(element("th", name, { scope: "row" }), element("td", value));
      table.append(item);
    };
    line("token", JSON.stringify(data.tokens[data.ids[i]]));
    line("position", String(i - row.from));
    line("advantage", number(row.advantage));
    for (const name of FIELDS) if (data.values[name]) line(LABELS[name], number(data.values[name][i]));
    if (data.values.logp) line("probability", number(Math.exp(data.values.logp[i])));
    if (data.fate) line(LABELS.fate, data.fates[data.fate[i]]);
    $("tip").replaceChildren(table);
    const at = token.getBoundingClientRect();
    const size = $("tip").getBoundingClientRect();
    const below = at.bottom + size.height + 8 < window.innerHeight;
    $("tip").style.top = `${Math.max(4, below ? at.bottom + 4 : at.top - size.height - 4)}px`;
    $("tip").style.left = `${Math.max(4, Math.min(at.left, window.innerWidth - size.width - 8))}px`;
  }

  function mark(token) {
    for (const old of document.querySelectorAll(".marked")) old.classList.remove("marked");
    token.classList.add("marked");
  }

  function select(token) {
    const found = of(token);
    if (!found || found.data.run !== chosen.run || found.data.step !== chosen.step) return;
    mark(token);
    tip(token);
    Object.assign(chosen, { sample: found.row.sample, token: found.i - found.row.from });
    toHash();
  }

  function move(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const box = event.target.closest?.("article");
    if (event.key === "Escape") tip(null);
    if (!by || !box) return;
    const tokens = [...box.querySelectorAll("[data-i]")];
    const at = tokens.findIndex((token) => token.classList.contains("marked"));
    const next = tokens[Math.max(0, Math.min(tokens.length - 1, at + by))];
    if (next) select(next), mark(next), tip(next), next.scrollIntoView({ block: "nearest" });
    event.preventDefault();
  }

  function message(text) {
    $("shown").replaceChildren(element("p", text, { className: "message" }));
  }

  function toControls() {
    const options = runOf(chosen.run).steps.map((s) => element("option", `${s.step}`, { value: s.step }));
    $("step").replaceChildren(...options);
    for (const id of ["run", "step", "colour", "sort", "search"]) $(id).value = chosen[id];
    $("group").checked = chosen.group;
  }

  // What may be beside: first the steps that have the same problem.
  function toOthers() {
    const groups = [element("optgroup", undefined, { label: "with this problem" }), element("optgroup", undefined, { label: "without it" })];
    for (const run of index.runs)
      for (const s of run.steps)
        if (run.name !== chosen.run || s.step !== chosen.step)
          groups[s.prompts.includes(chosen.prompt) ? 0 : 1].append(element("option", `${run.name}, step ${s.step}`, { value: key(run.name, s.step) }));
    $("against").replaceChildren(element("option", "nothing", { value: "" }), ...groups.filter((group) => group.childElementCount));
    if (chosen.against === key(chosen.run, chosen.step)) chosen.against = "";
    $("against").value = chosen.against;
  }

  function toHash() {
    const kept = new URLSearchParams();
    for (const name of ["run", "step", "prompt", "sample", "token", "colour", "sort", "search", "against"])
      if (chosen[name] !== null && chosen[name] !== "") kept.set(name, chosen[name]);
    if (chosen.group) kept.set("group", "1");
    history.replaceState(null, "", `#${kept}`);
  }

  function fromHash() {
    const given = new URLSearchParams(location.hash.slice(1));
    const among = (name, values, otherwise) => (values.includes(given.get(name)) ? given.get(name) : otherwise);
    const whole = (name) => (/^\d{1,10}$/.test(given.get(name) ?? "") ? Number(given.get(name)) : null);
    const places = index.runs.flatMap((run) => run.steps.map((s) => key(run.name, s.step)));
    chosen.run = among("run", index.runs.map((run) => run.name), index.runs[0].name);
    chosen.colour = among("colour", COLOURS, "entropy");
    chosen.sort = among("sort", Array.from($("sort").options, (option) => option.value), "order");
    chosen.against = among("against", places, "");
    chosen.search = given.get("search") ?? "";
    for (const name of ["step", "prompt", "sample", "token"]) chosen[name] = whole(name);
    chosen.group = given.get("group") === "1";
    nearest();
  }

  return { start, add };
})();
