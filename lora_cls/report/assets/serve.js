// The page of a server. Texts and names of users only ever become text nodes and attribute values, never markup.
"use strict";
const find = (id) => document.getElementById(id);
const MOST_BARS = 12, MOST_TEXTS = 200;
let served = [], token = "";

function element(name, options = {}, ...children) {
  const made = Object.assign(document.createElement(name), options);
  made.append(...children);
  return made;
}

// A name keeps its direction of writing to itself.
const named = (name) => element("bdi", { textContent: name });
const percent = (share) => (100 * share).toFixed(share < 0.1 ? 1 : 0) + " %";

function complain(sentence) {
  find("problem").textContent = sentence;
  find("problem").hidden = !sentence;
}

// The answer's JSON, or an Error with the server's sentence.
async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = "Bearer " + token;
  let answer;
  try {
    answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const found = await answer.json().catch(() => ({}));
  if (answer.status === 401) find("token-line").hidden = false;
  if (!answer.ok) throw new Error(found.detail || "The server answers with status " + answer.status + ".");
  return found;
}

async function start() {
  complain("");
  try {
    const facts = await ask("v1/runs");
    served = facts.runs;
    find("token-line").hidden = true;
    find("run").replaceChildren(...served.map((run) => element("option", { textContent: run.name, value: run.name })));
    find("run-line").hidden = served.length < 2;
    find("ask").disabled = false;
    choose();
  } catch (error) {
    find("facts").textContent = "";
    complain(error.message);
  }
}

const chosen = () => served.find((run) => run.name === find("run").value) || served[0];

// A field for each column that texts of the run are made of.
function choose() {
  const run = chosen(), one = run.columns.length === 1;
  find("facts").replaceChildren(
    named(run.name), ": " + run.models + (run.models === 1 ? " model, " : " models, ") + run.labels.length + " labels. A text has " +
    (run.task === "single_label" ? "exactly one of them." : "a label whose bar reaches its mark, the label's threshold."));
  const before = find("fields").querySelector("textarea")?.value || "";
  find("fields").replaceChildren(...run.columns.flatMap((column, i) => {
    const label = element("label", { htmlFor: "field-" + i }, one ? "Texts" : named(column));
    return [label, element("textarea", { id: "field-" + i, value: i === 0 ? before : "", dir: "auto" })];
  }));
  find("split-line").hidden = !one;
  find("answers").replaceChildren();
}

function texts(run) {
  const values = run.columns.map((_, i) => find("field-" + i).value);
  if (run.columns.length > 1) return [Object.fromEntries(run.columns.map((column, i) => [column, values[i]]))];
  return (find("split").checked ? values[0].split(/\r?\n/) : values).filter((text) => text.trim());
}

function bar(name, answer, threshold, exclusive) {
  const share = answer.probabilities[name], yes = answer.labels.includes(name);
  const unsure = (answer.abstained || []).includes(name);
  const kind = (yes ? "yes" : "") + (unsure ? " unsure" : "");
  const fill = element("div", { className: "fill" }), track = element("div", { className: "track " + kind }, fill);
  fill.style.width = 100 * Math.min(Math.max(share, 0), 1) + "%";
  const figure = element("dd", { className: "figure" }, percent(share));
  if (!exclusive) {
    const mark = element("div", { className: "mark" });
    mark.style.left = 100 * Math.min(Math.max(threshold, 0), 1) + "%";
    track.append(mark);
    figure.append(element("span", { className: "muted", textContent: (share >= threshold ? " ≥ " : " < ") + percent(threshold) }));
  }
  if (unsure) figure.append(element("span", { className: "muted", textContent: ", not sure" }));
  track.setAttribute("role", "img");
  track.setAttribute("aria-label", figure.textContent + (yes ? ", given" : ""));
  return [element("dt", { className: kind }, named(name)), element("dd", {}, track), figure];
}

function card(text, answer, found) {
  const exclusive = found.task === "single_label";
  const order = Object.keys(answer.probabilities).sort((a, b) =>
    answer.labels.includes(b) - answer.labels.includes(a) || answer.probabilities[b] - answer.probabilities[a]);
  const shown = typeof text === "string" ? text : Object.values(text).join("\n");
  const bars = element("dl", { className: "bars" });
  const draw = (names) => bars.replaceChildren(...names.flatMap((name) => bar(name, answer, found.thresholds[name], exclusive)));
  draw(order.slice(0, MOST_BARS));
  const made = element("section", {}, element("p", { className: "given", textContent: shown, dir: "auto" }), bars);
  if (order.length > MOST_BARS) {
    const more = element("button", { type: "button", textContent: "All " + order.length + " labels" });
    more.addEventListener("click", () => { draw(order); more.remove(); });
    made.append(element("p", {}, more));
  }
  return made;
}

async function classify() {
  const run = chosen(), given = texts(run);
  complain("");
  if (!given.length) return complain("There is no text yet.");
  if (given.length > MOST_TEXTS) return complain("This page shows " + MOST_TEXTS + " texts at a time; these are " + given.length + ". For more: POST /v1/predict.");
  find("ask").disabled = true;
  try {
    const found = await ask("v1/predict", { texts: given, run: run.name });
    find("answers").replaceChildren(...found.answers.map((answer, i) => card(given[i], answer, found)));
  } catch (error) {
    complain(error.message);
  } finally {
    find("ask").disabled = false;
  }
}

find("form").addEventListener("submit", (event) => { event.preventDefault(); classify(); });
find("run").addEventListener("change", choose);
find("use-token").addEventListener("click", () => { token = find("token").value; start(); });
find("token").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  find("use-token").click();
});
start();
