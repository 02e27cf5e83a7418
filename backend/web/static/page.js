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

function update(status) {
  for (const name of ["finished", "total", "done", "empty", "failed", "cancelled"]) show(name, status.counts[name]);
  show("rate", `${status.rate_per_s.toFixed(2)} tasks/s`);
  show("eta", duration(status.eta_s));
  const bar = card.querySelector("progress");
  bar.max = status.counts.total || 1;
  bar.value = status.counts.finished;
  const problem = card.querySelector('[data-field="problem"]');
  problem.hidden = !status.problem;
  const waits = status.paused_until ? `Waiting, tried again in ${duration(Math.max(0, status.paused_until - Date.now() / 1000))}: ` : "";
  problem.textContent = status.problem ? waits + status.problem : "";
}

async function poll() {
  try {
    const answer = await fetch(card.dataset.url, { headers: { Accept: "application/json" } });
    if (answer.ok) {
      const status = await answer.json();
      update(status);
      // Buttons, reasons and pictures come from the server: another state is another page.
      const changed = status.state !== card.dataset.state || (status.counts.failed > 0) !== (Number(card.dataset.failed) > 0);
      if (changed && !document.querySelector("details[open] :focus")) {
        location.reload();
        return;
      }
    }
  } catch { /* The service restarts, or the network is away: the next poll will tell. */ }
  setTimeout(poll, 2000);
}

if (card && ACTIVE.includes(card.dataset.state)) setTimeout(poll, 1000);
