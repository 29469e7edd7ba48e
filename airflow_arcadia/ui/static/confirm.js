// The dialog that every action goes through: what it does, why, and the note that is kept in the audit log.
import { ask, element, say } from "./common.js";

const at = (id) => document.getElementById(id);

export function confirm(title, text, path, body, after) {
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
    await after();
  };
  dialog.returnValue = "";
  dialog.showModal();
}

const keyOf = (batch) =>
  ({ dag_id: batch.dag_id, run_id: batch.run_id, task_id: batch.task_id, map_index: batch.map_index });

// The buttons of a batch: what this user may do to it as it is now.
export function batchActions(batch, after) {
  const failed = (batch.progress || {}).failed || 0;
  const buttons = [];
  if (!batch.may_change) return buttons;
  if (batch.state === "running" || (batch.state === "deferred" && batch.batch_id)) {
    buttons.push(element("button", { type: "button", onclick: () => confirm(
      "Cancel the batch", `${batch.task_id} of ${batch.run_id} stops at the next committed row and fails; what ` +
      "it committed is kept.", "api/actions/cancel-batch", keyOf(batch), after) }, "Cancel …"));
  }
  if (["success", "failed"].includes(batch.state) && failed) {
    buttons.push(element("button", { type: "button", onclick: () => confirm(
      "Retry the failed rows", `The ${failed} failed rows of ${batch.task_id} in ${batch.run_id} are answered ` +
      "again; all other answers are kept. The batch's task, what depends on it and, where it was torn down, " +
      "its worker run again.", "api/actions/retry-failed-rows", keyOf(batch), after) }, "Retry failed rows …"));
  }
  return buttons;
}
