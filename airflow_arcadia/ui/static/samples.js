// The first answers beside their prompts, and the failed rows by error code.
import { element, number, table } from "./common.js";

export function answers(found) {
  if (!found.answers.length) return element("p", { class: "muted" }, found.note || "There are none.");
  return element("div", { class: "answers" }, ...found.answers.map((one) =>
    element("details", { open: "" },
      element("summary", {}, one.custom_id || "row"),
      element("div", { class: "pair" },
        element("div", {}, element("h3", {}, "Prompt"), element("pre", {}, one.prompt || "not shown here")),
        element("div", {}, element("h3", {}, one.error ? "Error" : "Answer"),
          element("pre", { class: one.error ? "bad" : null }, one.error || one.text || ""))))));
}

export function errors(found) {
  return table(["Code", "Rows"], found.errors.map((one) =>
    element("tr", {}, element("td", {}, one.code), element("td", {}, number(one.rows)))), "No row failed.");
}
