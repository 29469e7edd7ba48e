import { ask, bar, duration, element, followTheme, line, number, poll, say, stateClass, table } from "./common.js";

const query = new URLSearchParams(location.search);
if (!/^-?\d+$/.test(query.get("map_index") || "")) query.set("map_index", "-1");
const seen = [];
let samples = null;

const at = (id) => document.getElementById(id);

function facts(batch) {
  const progress = batch.progress || {};
  const summary = batch.summary || {};
  const rows = [
    ["State", element("span", { class: stateClass(batch.state) }, batch.state || "no status")],
    ["Rows", bar(batch.progress)],
    ["Failed", number(progress.failed)],
    ["Rows per second", number(progress.rows_per_s, 1)],
    ["Tokens per second", number(progress.tokens_per_s)],
    ["Left", batch.ended ? "–" : duration(progress.eta_s)],
    ["Took", duration(batch.seconds)],
    ["Attempt", number(batch.attempt)],
    ["Output", summary.output || "–"],
    ["Failed rows", summary.errors || "–"],
    ["Tokens", summary.rows === undefined ? "–"
      : `${number(summary.prompt_tokens)} read, ${number(summary.completion_tokens)} generated`],
    ["GPU seconds", number(summary.gpu_seconds)],
  ];
  return element("table", { class: "table" }, element("tbody", {},
    ...rows.map(([name, value]) => element("tr", {}, element("th", {}, name), element("td", {}, value)))));
}

async function read() {
  try {
    const batch = await ask(`api/batch?${query}`);
    at("batch").replaceChildren(facts(batch));
    if (!batch.ended && batch.progress) seen.push(batch.progress.rows_per_s || 0);
    at("throughput").replaceChildren(seen.length > 1 ? line(seen, "chart")
      : element("p", { class: "muted" }, "Drawn while the batch runs and this tab is open."));
    at("timeline").replaceChildren(table(["Step", "State", "Took"], batch.timeline.map((step) =>
      element("tr", {}, element("td", {}, step.step),
        element("td", {}, element("span", { class: stateClass(step.state) }, step.state || "–")),
        element("td", {}, step.ended ? duration(step.ended - step.started) : "running"))), "Nothing has started."));
    if (samples === null || !batch.ended) await readSamples();
    document.body.dataset.read = "yes";
    say("");
  } catch (error) {
    say(`The batch cannot be read: ${error.message}`);
  }
}

async function readSamples() {
  const found = await ask(`api/batch/samples?${query}`);
  if (found.note === null) samples = found;
  at("answers").replaceChildren(...(found.answers.length
    ? found.answers.map((one) => element("details", { open: "" },
        element("summary", {}, one.custom_id || "row"), element("pre", {}, one.error || one.text || "")))
    : [element("p", { class: "muted" }, found.note || "There are none.")]));
  at("errors").replaceChildren(table(["Code", "Rows"], found.errors.map((one) =>
    element("tr", {}, element("td", {}, one.code), element("td", {}, number(one.rows)))), "None."));
}

followTheme();
poll(read, 3000);
