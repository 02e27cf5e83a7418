// Keeps the running propagation's figures up to date; everything works without it, by reloading the page.
"use strict";

for (const dot of document.querySelectorAll("[data-colour]")) dot.style.background = dot.dataset.colour;

const card = document.querySelector("#propagation[data-url]");
const ACTIVE = ["planning", "running", "finishing"];

function show(name, text) {
  const element = card.querySelector(`[data-field="${name}"]`);
  if (element) element.textContent = text;
}

function duration(seconds) {
  if (seconds === null) return "-";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function rate(perSecond) {
  return perSecond >= 1 || !perSecond ? `${perSecond.toFixed(1)} tasks/s` : `${(perSecond * 60).toFixed(1)} tasks/min`;
}

function update(status) {
  const counts = status.counts;
  const total = counts.total || 1;
  for (const name of ["finished", "total", "made_anew", "kept", "empty", "failed", "cancelled", "running", "pending"]) show(name, counts[name]);
  show("percent", status.percent);
  show("rate", rate(status.rate_per_s));
  show("eta", duration(status.eta_s));
  show("age", duration((status.finished_at || Date.now() / 1000) - (status.started_at || status.created_at)));
  show("workers", status.workers ?? "?");
  card.querySelector('[data-field="no-workers"]').hidden = !(status.is_active && status.workers === 0);
  let x = 0;
  for (const part of card.querySelectorAll("[data-part]")) {
    const width = (1000 * counts[part.dataset.part]) / total;
    part.setAttribute("x", x.toFixed(1));
    part.setAttribute("width", width.toFixed(1));
    x += width;
  }
  for (const entry of card.querySelectorAll("[data-legend]")) entry.classList.toggle("none", !counts[entry.dataset.legend]);
  card.querySelector(".bar").setAttribute("aria-valuenow", counts.finished);
  const problem = card.querySelector('[data-field="problem"]');
  problem.hidden = !status.problem;
  const waits = status.paused_until ? `Waiting, tried again in ${duration(Math.max(0, status.paused_until - Date.now() / 1000))}: ` : "";
  problem.textContent = status.problem ? waits + status.problem : "";
}

let isInWork = card && (ACTIVE.includes(card.dataset.state) || Number(card.dataset.running) > 0);

async function poll() {
  try {
    const answer = await fetch(card.dataset.url, { headers: { Accept: "application/json" } });
    if (answer.ok) {
      const status = await answer.json();
      update(status);
      // Of one that was cancelled some tasks may still be in work.
      isInWork = status.is_active || status.counts.running > 0;
      // Buttons, reasons and pictures come from the server: another state is another page.
      const changed = status.state !== card.dataset.state || (status.counts.failed > 0) !== (Number(card.dataset.failed) > 0);
      if (changed && !document.querySelector("details[open] :focus")) {
        location.reload();
        return;
      }
    }
  } catch { /* The service restarts, or the network is away: the next poll will tell. */ }
  if (isInWork) setTimeout(poll, 2000);
}

if (isInWork) setTimeout(poll, 1000);
