// Decisions on a tile: accept its masks, or say that a label is wrong. Each resolves to what the backend answered.
import { ask, send } from "./talk.js";

export async function accept(base, tile) {
  if (!tile.querySelector('[data-act="accept"]')) return null;
  const done = await send(`${base}/tasks/${tile.dataset.task}/accept`, {});
  return { ...done, text: done.error || `${tile.dataset.name} is accepted: its masks are an annotation now. u takes it back.` };
}

export async function reject(base, tile) {
  const button = tile.querySelector('[data-act="wrong"]');
  if (!button) return null;
  const labels = JSON.parse(button.dataset.labels);
  let label = labels[0];
  if (labels.length > 1) {
    label = await ask("Which label is wrong?", "An annotation without it is made; the image counts as its background.", [...labels.map((one) => [one, one]), ["all of them", ""]]);
    if (label === null) return null;
  }
  const done = await send(`${base}/tasks/${tile.dataset.task}/wrong`, label ? { label } : {});
  return { ...done, text: done.error || `${tile.dataset.name}: ${label || "no label"} is noted as ${label ? "absent" : "right"}. u takes it back.` };
}

export async function undo(base, batch) {
  const done = await send(`${base}/gallery/undo`, { batch });
  const left = done.changed?.length ? `; ${done.changed.length} changed since by somebody, and kept` : "";
  return { ...done, text: done.error || `${done.tasks.length} ${done.tasks.length === 1 ? "annotation is" : "annotations are"} taken back${left}` };
}
