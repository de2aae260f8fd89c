"use strict";
// Keys, focus, and the item that was loaded ahead. Without this file, and without htmx, every form works as it is.

const IDLE_MS = 10 * 60 * 1000;
const busy = () => document.body.hasAttribute("aria-busy");
let active = Date.now();
for (const sign of ["keydown", "pointerdown", "pointermove", "wheel", "touchmove"])
  document.addEventListener(sign, () => { active = Date.now(); }, { passive: true });
const keys = document.getElementById("keys");

if (keys) {
  keys.checked = localStorage.getItem("keys") !== "off";
  keys.addEventListener("change", () => localStorage.setItem("keys", keys.checked ? "on" : "off"));
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("textarea, select, input:not([type=checkbox])");
  if (typing || busy() || !keys?.checked || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const wanted = document.querySelector(`#desk [data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (!wanted) return;
  event.preventDefault();
  wanted.click();
});

// The next item is on the screen while the decision is on its way; it becomes active with the answer.
document.addEventListener("htmx:beforeRequest", (event) => {
  const form = event.detail.elt;
  if (form.hasAttribute("data-unseen")) {
    // Who has gone away gives the item back by letting its lease end.
    if (form.hasAttribute("data-renew") && (document.hidden || Date.now() - active > IDLE_MS)) event.preventDefault();
    return;
  }
  if (busy()) return event.preventDefault();
  document.body.setAttribute("aria-busy", "true");
  const ahead = document.getElementById("ahead");
  if (!ahead || !form.matches(".decide, .skip")) return;
  const next = ahead.content.cloneNode(true).firstElementChild;
  next.inert = true;
  const old = document.getElementById("case");
  old.hidden = true;
  old.after(next);
});

document.addEventListener("htmx:afterSettle", (event) => {
  if (event.detail.elt.id !== "desk") return;
  document.body.removeAttribute("aria-busy");
  document.getElementById("notice").textContent = document.querySelector("[data-notice] p")?.textContent ?? "";
  [...document.querySelectorAll("#desk [data-focus]")].pop()?.focus({ preventScroll: true });
});

for (const failure of ["htmx:responseError", "htmx:sendError", "htmx:timeout"]) {
  document.addEventListener(failure, (event) => {
    const form = event.detail.elt;
    if (!form.hasAttribute("data-unseen")) return location.assign("/desk?did=failed");
    // The lease was lost. What is asked after a decision says nothing of the item that is shown now.
    if (form.hasAttribute("data-renew") && event.detail.xhr.status === 409 && form.isConnected && !busy()) location.assign("/desk?did=late");
  });
}
