import { ask, bar, duration, element, followTheme, line, link, number, poll, runPath, say, stateClass, table,
  taskPath }
  from "./common.js";
import { batchActions, confirm } from "./confirm.js";
import { answers, errors } from "./samples.js";
import { update } from "./update.js";

const POLL_MS = 1500; // the server reads each source at most once a second, whoever asks
const opened = new Map(); // batch -> its samples, null while they are read
let latest = null;

const at = (id) => document.getElementById(id);
const keyOf = (batch) => `${batch.dag_id}/${batch.run_id}/${batch.task_id}/${batch.map_index}`;
const muted = (...text) => element("span", { class: "muted" }, ...text);

function strip(held) {
  const children = [
    element("p", {}, element("span", { class: "number" }, number(held.gpus)), "GPUs held now"),
    ...held.holders.map((holder) =>
      element("p", {}, holder.dag_id ? link(runPath(holder), holder.dag_id) : "A warm worker:",
        ` ${holder.gpus} GPUs for ${duration(latest.at - holder.since)}`)),
  ];
  if (held.hidden) children.push(element("p", { class: "muted" }, `${held.hidden} of DAGs you may not read`));
  children.push(held.leaks.length
    ? element("p", { class: "state bad" }, `Past their time: ${held.leaks.join(", ")}`)
    : element("p", { class: "muted" }, "No lease is past its time"));
  update(at("strip"), ...children);
}

function batchRows(batch) {
  const progress = batch.progress || {};
  const running = ["running", "deferred"].includes(batch.state);
  const rates = batch.history.map((point) => point[2]);
  const key = keyOf(batch);
  const output = batch.summary ? batch.summary.output : null;
  const row = element("tr", { "data-batch": key },
    element("td", {}, link(taskPath(batch), batch.task_id), element("br"),
      muted(batch.dag_id), element("br"), element("span", { class: "muted run", title: batch.run_id }, batch.run_id)),
    // The buttons are here because the last columns of a narrow window are seen only after scrolling.
    element("td", { class: "actions" }, element("span", { class: stateClass(batch.state) }, batch.state || "waiting"),
      ...batchActions(batch, read)),
    element("td", {}, bar(batch.progress)),
    element("td", {}, progress.failed ? element("span", { class: "state bad" }, number(progress.failed)) : "0"),
    element("td", {}, running ? number(progress.rows_per_s, 1) : "–"),
    element("td", {}, number(progress.tokens_per_s)),
    element("td", {}, running ? duration(progress.eta_s) : duration(batch.seconds)),
    element("td", {}, rates.length > 1 ? line(rates, "spark") : ""),
    element("td", {}, number(batch.attempt)),
    element("td", {}, element("span", { class: "output", title: output }, output || "–"), output
      ? element("button", { type: "button", "aria-expanded": String(opened.has(key)),
        onclick: () => toggle(batch) }, opened.has(key) ? "Hide answers" : "Show answers") : ""));
  if (!opened.has(key)) return [row];
  const found = opened.get(key);
  const shown = found ? [answers(found), element("h3", {}, "Failed rows by code"), errors(found)] : ["Reading …"];
  return [row, element("tr", {}, element("td", { colspan: 10 }, ...shown))];
}

async function toggle(batch) {
  const key = keyOf(batch);
  if (opened.delete(key)) return show();
  opened.set(key, null);
  show();
  const query = new URLSearchParams({
    dag_id: batch.dag_id, run_id: batch.run_id, task_id: batch.task_id, map_index: batch.map_index });
  try {
    opened.set(key, await ask(`api/batch/samples?${query}`));
  } catch (error) {
    opened.set(key, { answers: [], errors: [], note: error.message });
  }
  show();
}

function workerRows(lease) {
  const shown = lease.workers.length ? lease.workers : [null];
  return shown.map((worker) => {
    const metrics = (worker && worker.metrics) || {};
    const body = { connection: lease.connection, lease: lease.lease };
    const reason = worker && (worker.reason || (worker.state && worker.state !== "ready" ? worker.state : null));
    const actions = lease.may_change ? [
      element("button", { type: "button", onclick: () => confirm("Extend the lease",
        `Lease ${lease.lease} holds for its whole duration again, from now.`,
        "api/actions/extend-lease", body, read) }, "Extend …"), " ",
      element("button", { type: "button", class: "danger", onclick: () => confirm("End the worker",
        `Everything that lease ${lease.lease} owns ends now: its workers, and a Ray cluster made for it. ` +
        "A batch that runs there fails; what it committed is kept.",
        "api/actions/end-worker", body, read) }, "End …")] : [];
    return element("tr", { "data-lease": lease.lease },
      element("td", {}, worker ? worker.model : "–", element("br"), muted(worker ? worker.name : lease.lease)),
      element("td", {}, element("span", { class: lease.attention ? "state bad" : "state ok" }, lease.phase),
        reason ? element("br") : "", reason ? muted(reason) : ""),
      element("td", {}, worker ? `TP ${worker.num_gpus}` : "–", element("br"), muted(worker ? worker.launcher : "")),
      element("td", {}, duration(latest.at - lease.since), element("br"),
        muted(worker && worker.gpu_hours !== null ? `${number(worker.gpu_hours, 2)} GPU-hours` : "")),
      element("td", {}, lease.lease_left === undefined ? "–" : duration(lease.lease_left)),
      element("td", {}, worker ? number(worker.restarts) : "–"),
      element("td", {}, number(metrics.tokens_per_s)),
      element("td", {}, worker && worker.metrics ? `${number(metrics.running)} / ${number(metrics.waiting)}` : "–"),
      element("td", {}, metrics.kv_cache_usage === undefined ? "–" : `${number(100 * metrics.kv_cache_usage)} %`),
      element("td", {}, lease.dag_id ? element("span", { class: "run", title: lease.run_id },
        link(runPath(lease), lease.run_id)) : "–"),
      element("td", {}, ...actions));
  });
}

function clusterRows(cluster) {
  // Two connections may list clusters of the same name, or the same cluster.
  const from = [element("br"), muted(`${cluster.connection}: ${cluster.url}`)];
  if (cluster.error) {
    return [element("tr", {}, element("td", {}, cluster.name, ...from),
      element("td", { colspan: 4 }, muted(cluster.error)),
      element("td", {}, element("span", { class: "state bad" }, "away")))];
  }
  const used = cluster.gpus_total - cluster.gpus_free;
  const health = (ok, text) => element("td", {}, element("span", { class: ok ? "state ok" : "state bad" }, text));
  return [
    element("tr", {},
      element("td", {}, cluster.name, ...from),
      element("td", {}, number(cluster.gpus_total)), element("td", {}, number(used)),
      element("td", {}, number(cluster.gpus_free)),
      element("td", {}, `Ray ${cluster.ray_version}, Python ${cluster.python_version}`),
      health(cluster.healthy, cluster.healthy ? "healthy" : "a node is dead")),
    ...cluster.nodes.map((node) => element("tr", { class: "node" },
      element("td", {}, `${node.ip}${node.head ? " (head)" : ""}`),
      element("td", {}, number(node.gpus_total)), element("td", {}, number(node.gpus_used)),
      element("td", {}, number(node.gpus_total - node.gpus_used)), element("td", {}, ""),
      health(node.alive, node.alive ? "alive" : "dead")))];
}

function show() {
  if (!latest) return;
  const only = at("attention").checked;
  const batches = latest.batches.filter((batch) => !only || batch.attention);
  const leases = latest.leases.filter((lease) => !only || lease.attention);
  strip(latest.held);
  update(at("away"), ...latest.away.map((one) => element("li", {}, `${one.source}: ${one.error}`)));
  at("away").hidden = !latest.away.length;
  at("reap").hidden = !latest.may_reap;
  update(at("batches"), table(
    ["Batch", "State", "Rows", "Failed", "Rows/s", "Tokens/s", "Left / took", "Rows/s over time", "Attempt",
      "Output"],
    batches.flatMap(batchRows), only ? "No batch needs attention." : "No batch has run yet."));
  update(at("workers"), table(
    ["Model", "Phase", "GPUs", "Held for", "Lease left", "Restarts", "Tokens/s", "Running / waiting", "KV cache",
      "Run", ""],
    leases.flatMap(workerRows), only ? "No worker needs attention." : "No worker runs: no GPU is held."));
  update(at("clusters"), table(
    ["Cluster, nodes", "GPUs", "Used", "Free", "Versions", "Health"],
    latest.clusters.flatMap(clusterRows), "No connection of type arcadia lists a Ray cluster."));
  at("at").textContent = `as of ${new Date(1000 * latest.at).toLocaleTimeString()}`;
}

async function read() {
  try {
    latest = await ask("api/overview");
    show();
    document.body.dataset.read = "yes";
  } catch (error) {
    say(`The page cannot be read: ${error.message}`);
  }
}

followTheme();
at("attention").addEventListener("change", show);
at("reap").addEventListener("click", () => confirm("Run the reaper",
  "Ends what leases that nobody holds any more still own, on every connection.", "api/actions/reap", {}, read));
poll(read, POLL_MS);
