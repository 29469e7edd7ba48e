// What both pages share: requests, numbers in words, elements whose text is never read as HTML, Airflow's theme.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.onclick = value;
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export async function ask(path, body) {
  const options = body
    ? { method: "POST", body: JSON.stringify(body),
        headers: { "Content-Type": "application/json", "X-Arcadia-Page": "1" } }
    : {};
  const answer = await fetch(path, { ...options, credentials: "same-origin" });
  const text = await answer.text();
  let parsed = {};
  try { parsed = JSON.parse(text); } catch { parsed = { detail: text.slice(0, 300) }; }
  if (!answer.ok) {
    const detail = typeof parsed.detail === "string" ? parsed.detail : JSON.stringify(parsed.detail);
    throw new Error(answer.status === 401 ? "You are not logged in any more: reload Airflow." : detail);
  }
  return parsed;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.floor(whole / 60)} min`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

export function table(headings, rows, empty) {
  if (!rows.length) return element("p", { class: "muted" }, empty);
  return element("div", { class: "wide" },
    element("table", { class: "table" },
      element("thead", {}, element("tr", {}, ...headings.map((text) => element("th", {}, text)))),
      element("tbody", {}, ...rows)));
}

export function line(values, kind) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("class", kind);
  drawing.setAttribute("viewBox", "0 0 100 100");
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", "rows per second over time");
  if (values.length > 1) {
    const highest = Math.max(...values, 1e-9);
    const points = values.map((value, i) => `${(100 * i) / (values.length - 1)},${98 - (96 * value) / highest}`);
    const path = document.createElementNS(space, "polyline");
    path.setAttribute("points", points.join(" "));
    drawing.append(path);
  }
  return drawing;
}

// Rows per second over the time of the batch; ``points`` as the server keeps them.
export function chart(points) {
  const rates = points.map((point) => point[2]);
  const [first, last] = [points[0][0], points[points.length - 1][0]];
  return element("figure", {},
    element("figcaption", { class: "muted" }, `up to ${number(Math.max(...rates), 1)} rows/s`),
    line(rates, "chart"),
    element("p", { class: "axis muted" }, element("span", {}, new Date(1000 * first).toLocaleTimeString()),
      element("span", {}, new Date(1000 * last).toLocaleTimeString())));
}

export const taskPath = (batch) => `${runPath(batch)}/tasks/${encodeURIComponent(batch.task_id)}` +
  (batch.map_index >= 0 ? `/mapped/${batch.map_index}` : "");

export function bar(progress) {
  if (!progress || !progress.total) return element("span", { class: "muted" }, "not started");
  return element("div", { class: "bar" },
    element("progress", { max: progress.total, value: progress.done }),
    element("span", {}, `${number(progress.done)} / ${number(progress.total)}`));
}

export function stateClass(state) {
  if (["success", "ready"].includes(state)) return "state ok";
  return ["failed", "upstream_failed"].includes(state) ? "state bad" : "state warn";
}

export function say(text) {
  const place = document.getElementById("message");
  place.textContent = text;
  place.hidden = !text;
}

// The first colour behind the frame: elements are transparent unless they have one.
function backgroundBehind(frame) {
  for (let behind = frame; behind; behind = behind.parentElement) {
    const colour = window.parent.getComputedStyle(behind).backgroundColor;
    if (colour && colour !== "transparent" && !/^rgba\(.*, 0\)$/.test(colour)) return colour;
  }
  return null;
}

// Airflow keeps its theme on its own page, which has the same origin.
export function followTheme() {
  const set = () => {
    try {
      const root = window.parent.document.documentElement;
      const theme = root.classList.contains("dark") ? "dark" : root.classList.contains("light") ? "light" : null;
      if (theme) document.documentElement.dataset.theme = theme;
      const behind = backgroundBehind(window.frameElement);
      if (theme && behind) document.documentElement.style.setProperty("--background", behind);
    } catch { /* a frame that may not look: the system's theme is used */ }
  };
  set();
  try {
    new MutationObserver(set).observe(window.parent.document.documentElement, { attributeFilter: ["class"] });
  } catch { /* as above */ }
}

export const runPath = (one) => `/dags/${encodeURIComponent(one.dag_id)}/runs/${encodeURIComponent(one.run_id)}`;

// A link to one of Airflow's own pages, which opens in Airflow, not in the frame.
export function link(path, text) {
  const base = location.pathname.replace(/\/arcadia\/.*$/, "");
  return element("a", { href: `${base}${path}`, target: "_top", onclick: followInAirflow }, text);
}

// Airflow's frame is sandboxed without allow-top-navigation, so that the browser ignores ``_top`` there. Airflow's
// own document has the same origin: a link of that document is followed in this one's place.
function followInAirflow(event) {
  if (window.parent === window) return;
  event.preventDefault();
  const outside = window.parent.document.createElement("a");
  outside.href = event.currentTarget.href;
  const { ctrlKey, metaKey, shiftKey } = event;
  outside.dispatchEvent(new MouseEvent("click", { cancelable: true, ctrlKey, metaKey, shiftKey }));
}

export function poll(read, everyMs) {
  const next = async () => {
    if (!document.hidden) await read();
    setTimeout(next, everyMs);
  };
  next();
}
