import { ask, bar, chart, duration, element, followTheme, number, poll, say, stateClass, table } from "./common.js";
import { batchActions } from "./confirm.js";
import { answers, errors } from "./samples.js";
import { update } from "./update.js";

const query = new URLSearchParams(location.search);
if (!/^-?\d+$/.test(query.get("map_index") || "")) query.set("map_index", "-1");
let answersOf = null; // the completion whose answers are shown

const at = (id) => document.getElementById(id);

function facts(batch) {
  const progress = batch.progress || {};
  const summary = batch.summary || {};
  const rows = [
    ["State", element("span", { class: stateClass(batch.state) }, batch.state || "waiting")],
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
  return element("dl", { class: "facts" }, ...rows.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

// Each step as a bar on the time from the first step's start to the last one's end.
function timeline(steps) {
  if (!steps.length) return element("p", { class: "muted" }, "Nothing has started.");
  const begin = Math.min(...steps.map((step) => step.started));
  const now = Date.now() / 1000;
  const end = Math.max(...steps.map((step) => step.ended || now), begin + 1);
  const share = (from, to) => `${(100 * (to - from)) / (end - begin)}%`;
  return table(["Step", "State", "After", "Took", ""], steps.map((step) => {
    const drawn = element("div", { class: "step" });
    drawn.style.marginLeft = share(begin, step.started);
    drawn.style.width = share(step.started, step.ended || now);
    return element("tr", {}, element("td", {}, step.step),
      element("td", {}, element("span", { class: stateClass(step.state) }, step.state || "–")),
      element("td", {}, duration(step.started - begin)),
      element("td", {}, step.ended === step.started ? "" : duration((step.ended || now) - step.started)),
      element("td", { class: "steps" }, drawn));
  }), "");
}

async function read() {
  try {
    const batch = await ask(`api/batch?${query}`);
    update(at("actions"), ...batchActions(batch, read));
    update(at("batch"), facts(batch));
    update(at("throughput"), batch.history.length > 1 ? chart(batch.history)
      : element("p", { class: "muted" }, "Drawn once rows are answered."));
    update(at("timeline"), timeline(batch.timeline));
    const completion = batch.summary ? batch.summary.completion_id || "done" : "running";
    if (answersOf !== completion) await readSamples(completion);
    document.body.dataset.read = "yes";
  } catch (error) {
    say(`The batch cannot be read: ${error.message}`);
  }
}

async function readSamples(completion) {
  const found = await ask(`api/batch/samples?${query}`);
  answersOf = completion;
  update(at("answers"), answers(found));
  update(at("errors"), errors(found));
}

followTheme();
poll(read, 1500);
