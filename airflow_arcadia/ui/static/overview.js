import { ask, bar, duration, element, followTheme, line, link, number, poll, say, stateClass, table } from "./common.js";

const rates = new Map(); // batch -> rows per second as seen while this page is open
let latest = null;

const at = (id) => document.getElementById(id);
const keyOf = (batch) => `${batch.dag_id}/${batch.run_id}/${batch.task_id}/${batch.map_index}`;
const taskPath = (batch) =>
  `/dags/${encodeURIComponent(batch.dag_id)}/runs/${encodeURIComponent(batch.run_id)}/tasks/` +
  `${encodeURIComponent(batch.task_id)}${batch.map_index >= 0 ? `/mapped/${batch.map_index}` : ""}`;

function strip(held) {
  const children = [
    element("p", {}, element("span", { class: "number" }, number(held.gpus)), "GPUs held now"),
    ...held.holders.map((holder) =>
      element("p", {}, holder.dag_id ? link(`/dags/${encodeURIComponent(holder.dag_id)}`, holder.dag_id)
        : "A warm worker:",
        ` ${holder.gpus} GPUs for ${duration(latest.at - holder.since)}`)),
  ];
  if (held.hidden) children.push(element("p", { class: "muted" }, `${held.hidden} of DAGs you may not read`));
  if (held.leaks.length) {
    children.push(element("p", { class: "state bad" }, `Past their time: ${held.leaks.join(", ")}`));
  }
  at("strip").replaceChildren(...children);
}

function batchRow(batch) {
  const progress = batch.progress || {};
  const seen = rates.get(keyOf(batch)) || [];
  const running = ["running", "deferred"].includes(batch.state);
  const actions = element("td");
  if (batch.state === "deferred" && batch.batch_id) {
    actions.append(element("button", { type: "button", onclick: () => confirm(
      "Cancel the batch", `${batch.task_id} of ${batch.run_id} stops at the next committed row; what it ` +
      "committed is kept.", "api/actions/cancel-batch",
      { dag_id: batch.dag_id, run_id: batch.run_id, task_id: batch.task_id, map_index: batch.map_index }) },
    "Cancel …"));
  }
  const output = batch.summary ? batch.summary.output : null;
  return element("tr", {},
    element("td", {}, link(taskPath(batch), batch.task_id), element("br"),
      element("span", { class: "muted" }, `${batch.dag_id} · ${batch.run_id}`)),
    element("td", {}, element("span", { class: stateClass(batch.state) }, batch.state || "no status")),
    element("td", {}, bar(batch.progress)),
    element("td", {}, progress.failed ? element("span", { class: "state bad" }, number(progress.failed)) : "0"),
    element("td", {}, running ? number(progress.rows_per_s, 1) : "–"),
    element("td", {}, number(progress.tokens_per_s)),
    element("td", {}, running ? duration(progress.eta_s) : duration(batch.seconds)),
    element("td", {}, running && seen.length > 1 ? line(seen, "spark") : ""),
    element("td", {}, number(batch.attempt)),
    element("td", {}, output || "–"),
    actions);
}

function workerRows(lease) {
  const shown = lease.workers.length ? lease.workers : [null];
  return shown.map((worker) => {
    const metrics = (worker && worker.metrics) || {};
    const body = { connection: lease.connection, lease: lease.lease };
    return element("tr", {},
      element("td", {}, worker ? worker.model : "–", element("br"),
        element("span", { class: "muted" }, worker ? worker.name : lease.lease)),
      element("td", {}, element("span", { class: lease.attention ? "state bad" : "state ok" }, lease.phase)),
      element("td", {}, worker ? `${worker.num_gpus} × ${worker.launcher}` : "–"),
      element("td", {}, duration(latest.at - lease.since)),
      element("td", {}, lease.lease_left === undefined ? "–" : duration(lease.lease_left)),
      element("td", {}, number(metrics.tokens_per_s)),
      element("td", {}, worker && worker.metrics ? `${number(metrics.running)} / ${number(metrics.waiting)}` : "–"),
      element("td", {}, metrics.kv_cache_usage === undefined ? "–" : `${number(100 * metrics.kv_cache_usage)} %`),
      element("td", {}, lease.dag_id ? link(`/dags/${encodeURIComponent(lease.dag_id)}/runs/` +
        encodeURIComponent(lease.run_id), lease.run_id) : "–"),
      element("td", {},
        element("button", { type: "button", onclick: () => confirm("Extend the lease",
          `Lease ${lease.lease} holds for its whole duration again, from now.`,
          "api/actions/extend-lease", body) }, "Extend …"), " ",
        element("button", { type: "button", class: "danger", onclick: () => confirm("End the worker",
          `Everything that lease ${lease.lease} owns ends now: its workers, and a Ray cluster made for it. ` +
          "A batch that runs there fails; what it committed is kept.",
          "api/actions/end-worker", body) }, "End …")));
  });
}

function clusterRow(cluster) {
  if (cluster.error) {
    return element("tr", {}, element("td", {}, cluster.name), element("td", { colspan: 5 },
      element("span", { class: "muted" }, cluster.error)));
  }
  const nodes = cluster.nodes.map((node) =>
    `${node.ip}${node.head ? " (head)" : ""}: ${number(node.gpus_used)} of ${number(node.gpus_total)}` +
    `${node.alive ? "" : ", dead"}`);
  return element("tr", {},
    element("td", {}, cluster.name, element("br"), element("span", { class: "muted" }, cluster.url)),
    element("td", {}, number(cluster.gpus_total)),
    element("td", {}, number(cluster.gpus_total - cluster.gpus_free)),
    element("td", {}, number(cluster.gpus_free)),
    element("td", {}, `Ray ${cluster.ray_version}, Python ${cluster.python_version}`),
    element("td", {}, nodes.join("; ")));
}

function confirm(title, text, path, body) {
  const dialog = at("confirm");
  at("confirm-title").textContent = title;
  at("confirm-text").textContent = text;
  at("confirm-note").value = "";
  dialog.onclose = async () => {
    if (dialog.returnValue !== "ok") return;
    say("Working …");
    try {
      say((await ask(path, { ...body, note: at("confirm-note").value })).said);
    } catch (error) {
      say(error.message);
    }
    await read();
  };
  dialog.returnValue = "";
  dialog.showModal();
}

function show() {
  if (!latest) return;
  const only = at("attention").checked;
  const batches = latest.batches.filter((batch) => !only || batch.attention);
  const leases = latest.leases.filter((lease) => !only || lease.attention);
  strip(latest.held);
  at("away").replaceChildren(...latest.away.map((one) => element("li", {}, `${one.source}: ${one.error}`)));
  at("away").hidden = !latest.away.length;
  at("batches").replaceChildren(table(
    ["Batch", "State", "Rows", "Failed", "Rows/s", "Tokens/s", "Left / took", "", "Attempt", "Output", ""],
    batches.map(batchRow), only ? "No batch needs attention." : "No batch has run yet."));
  at("workers").replaceChildren(table(
    ["Model", "Phase", "GPUs", "Held for", "Lease left", "Tokens/s", "Running / waiting", "KV cache", "Run", ""],
    leases.flatMap(workerRows), only ? "No worker needs attention." : "No worker runs: no GPU is held."));
  at("clusters").replaceChildren(table(
    ["Cluster", "GPUs", "Used", "Free", "Versions", "Nodes (used of total)"],
    latest.clusters.map(clusterRow), "No connection of type arcadia lists a Ray cluster."));
  at("at").textContent = `as of ${new Date(1000 * latest.at).toLocaleTimeString()}`;
}

async function read() {
  try {
    latest = await ask("api/overview");
    for (const batch of latest.batches) {
      if (!batch.progress || !["running", "deferred"].includes(batch.state)) continue;
      const seen = rates.get(keyOf(batch)) || [];
      rates.set(keyOf(batch), [...seen, batch.progress.rows_per_s || 0].slice(-120));
    }
    show();
    document.body.dataset.read = "yes";
  } catch (error) {
    say(`The page cannot be read: ${error.message}`);
  }
}

followTheme();
at("attention").addEventListener("change", show);
at("reap").addEventListener("click", () => confirm("Run the reaper",
  "Ends what leases that nobody holds any more still own, on every connection.", "api/actions/reap", {}));
poll(read, 3000);
