// Shows what was read, and keeps the elements that stand for the same thing as before: a click, the keyboard's focus
// and a closed answer outlive the next reading.

const IDENTITY = ["data-batch", "data-lease", "href"];
const KEPT = ["open", "style"]; // ``open`` is the reader's own choice; styles are copied as properties

// Make the children of ``place`` like these.
export function update(place, ...children) {
  const made = place.cloneNode(false);
  made.append(...children);
  updateChildren(place, made);
}

function updateChildren(shown, made) {
  const wanted = [...made.childNodes];
  wanted.forEach((child, i) => {
    const there = shown.childNodes[i];
    if (!there) shown.append(child);
    else if (isSame(there, child)) updateNode(there, child);
    else there.replaceWith(child);
  });
  while (shown.childNodes.length > wanted.length) shown.lastChild.remove();
}

// A button never turns into another one, nor a row into that of another batch, between a press and its release.
function isSame(shown, made) {
  if (shown.nodeName !== made.nodeName) return false;
  if (shown.nodeType !== Node.ELEMENT_NODE) return true;
  if (shown.nodeName === "BUTTON" && shown.textContent !== made.textContent) return false;
  return IDENTITY.every((name) => shown.getAttribute(name) === made.getAttribute(name));
}

function updateNode(shown, made) {
  if (shown.nodeType !== Node.ELEMENT_NODE) {
    if (shown.data !== made.data) shown.data = made.data;
    return;
  }
  for (const { name } of [...shown.attributes]) {
    if (!made.hasAttribute(name) && !KEPT.includes(name)) shown.removeAttribute(name);
  }
  for (const { name, value } of [...made.attributes]) {
    if (!KEPT.includes(name) && shown.getAttribute(name) !== value) shown.setAttribute(name, value);
  }
  if (shown.style.cssText !== made.style.cssText) shown.style.cssText = made.style.cssText;
  shown.onclick = made.onclick;
  updateChildren(shown, made);
}
