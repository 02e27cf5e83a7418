// The gallery: keeps tiles up to date, and sends what people decide on them. The server draws every tile.
import { accept, reject, undo } from "./decide.js";
import { isTrying, offerPhrases } from "./phrases.js";
import { begin, isDrawing } from "./preview.js";
import { ask, say, send, show } from "./talk.js";

const root = document.querySelector("#gallery");
const grid = document.querySelector("#tiles");
const base = root.dataset.base;
const started = Number(root.dataset.counter);
const least = document.querySelector("#least");
const undoButton = document.querySelector("#undo");
const problem = document.querySelector("#problem");

const IDLE_MS = 1000;
const BUSY_MS = 250;
// After a change others follow: the tiles of a page are predicted one after the other.
const CHANGING_MS = 1500;
const LIVELY_MS = 5000;
const VISIBLE_AGAIN_MS = 20_000;

let counter = started;
let lastBatch = null;
let drawn = new Map();
let noted = "";
let notedAt = 0;
let failures = 0;
let changedAt = 0;

const tiles = () => [...grid.querySelectorAll(".tile")];
const idOf = (tile) => Number(tile.dataset.task);

function inView() {
  const height = window.innerHeight;
  const far = (tile) => {
    const box = tile.getBoundingClientRect();
    return box.bottom < 0 || box.top > height;
  };
  // Those on the screen first: they are predicted first.
  const all = tiles();
  return [...all.filter((tile) => !far(tile)), ...all.filter(far)].map(idOf);
}

async function noteVisible() {
  const ids = inView();
  if (!ids.length || document.hidden) return;
  const key = ids.join();
  if (key === noted && Date.now() - notedAt < VISIBLE_AGAIN_MS) return;
  noted = key;
  notedAt = Date.now();
  const answer = await send(`${base}/gallery/visible`, { ids });
  if (answer.problem) say(answer.problem);
}

function showLeast() {
  const value = Number(least.value);
  document.querySelector("#least-value").textContent = value.toFixed(2);
  let all = 0;
  let stay = 0;
  for (const region of grid.querySelectorAll(".after .region")) {
    const stays = Number(region.dataset.score) >= value;
    region.classList.toggle("below", !stays);
    all += 1;
    stay += stays;
  }
  document.querySelector("#least-count").textContent = `${stay} of ${all} regions shown here stay`;
  document.querySelector("#save-least").disabled = value === Number(least.dataset.saved);
  document.querySelector("#accept-all").textContent = `Accept all above ${value.toFixed(2)} …`;
}

export async function drawTiles(ids, since = started) {
  if (!ids.length) return;
  const answer = await fetch(`${base}/gallery/tiles?ids=${ids.join()}&since=${since}`, { headers: { Accept: "application/json" } });
  if (!answer.ok) return;
  const found = await answer.json();
  counter = Math.max(counter, found.counter);
  const changes = [];
  for (const { id, html, change, is_new: isNew } of found.tiles) {
    if (drawn.get(id) === html) continue;
    const known = document.querySelector(`#task-${id}`);
    if (!known) continue;
    const made = document.createElement("template");
    made.innerHTML = html.trim();
    const fresh = made.content.firstElementChild;
    const photo = known.querySelector(".photo");
    // The photograph stays: loading it again would flicker.
    if (photo && photo.getAttribute("src") === fresh.querySelector(".photo").getAttribute("src")) fresh.querySelector(".photo").replaceWith(photo);
    const focused = document.activeElement;
    const hadFocus = known.contains(focused);
    const act = focused?.dataset?.act;
    if (isNew && known.dataset.counter !== fresh.dataset.counter) changes.push(change);
    known.replaceWith(fresh);
    if (hadFocus) (fresh.querySelector(`[data-act="${act}"]`) || fresh).focus({ preventScroll: true });
    drawn.set(id, html);
  }
  const first = document.querySelector("#no-references");
  if (first && grid.querySelector(".badge.reference")) first.hidden = true;
  if (changes.length) say(`${changes.length} ${changes.length === 1 ? "tile" : "tiles"} changed, by up to ${Math.round(100 * Math.max(...changes))} %`);
  showLeast();
}

offerPhrases(base, inView);

async function poll() {
  let wait = IDLE_MS;
  if (!document.hidden) {
    try {
      await noteVisible();
      const answer = await fetch(`${base}/gallery/changes`, { headers: { Accept: "application/json" } });
      if (!answer.ok) throw new Error(String(answer.status));
      const status = await answer.json();
      if (status.counter > counter && !isDrawing() && !isTrying()) {
        counter = status.counter;
        changedAt = Date.now();
        await drawTiles(tiles().map(idOf));
      }
      if (status.is_busy) changedAt = Date.now();
      const quiet = Date.now() - changedAt;
      wait = quiet < CHANGING_MS ? status.again_ms : quiet < LIVELY_MS ? BUSY_MS : IDLE_MS;
      const run = status.propagation;
      document.querySelector("#progress").textContent = run
        ? `Propagation: ${run.finished} of ${run.total} tasks${run.waits ? `, ${run.waits}` : ""}`
        : status.pending ? `${status.pending} ${status.pending === 1 ? "annotation is" : "annotations are"} being read`
        : status.unwritten ? `${status.unwritten} ${status.unwritten === 1 ? "prediction is" : "predictions are"} on the way to ${root.dataset.place}` : "";
      if (failures) problem.hidden = true;
      failures = 0;
    } catch {
      failures += 1;
      wait = Math.min(10_000, IDLE_MS * 2 ** failures);
      if (failures > 1) {
        problem.textContent = "The backend does not answer; tried again in a moment. What is shown may be out of date.";
        problem.hidden = false;
      }
    }
  }
  setTimeout(poll, wait);
}

function current() {
  return document.activeElement?.closest?.(".tile");
}

function step(by) {
  const all = tiles();
  const at = all.indexOf(current());
  const next = all[at < 0 ? 0 : Math.min(all.length - 1, Math.max(0, at + by))];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

const nameOf = (task) => document.querySelector(`#task-${task}`)?.dataset.name || `task ${task}`;

function remember(batch, text) {
  lastBatch = batch;
  undoButton.hidden = !batch;
  say(text);
}

async function decide(tile, how) {
  const done = await how(base, tile);
  if (!done) return;
  if (done.error) return say(done.text);
  remember(done.batch, done.text);
  await drawTiles([idOf(tile)]);
}

async function remove(tile) {
  const answer = await ask("Remove the annotations", `What was kept of ${tile.dataset.name} is taken away; its references go with it.`, [["Remove", "yes"]]);
  if (answer !== "yes") return;
  const done = await send(`${base}/tasks/${tile.dataset.task}/remove`, {});
  say(done.error || `The annotations of ${tile.dataset.name} are removed`);
  drawn.delete(idOf(tile));
  await drawTiles([idOf(tile)]);
}

function kept(done) {
  remember(done.batch, `${nameOf(done.task)}: what you drew is an annotation now. u takes it back.`);
}

function ended() {
  drawn.clear();
  return drawTiles(tiles().map(idOf));
}

async function takeBack() {
  if (!lastBatch) return;
  const done = await undo(base, lastBatch);
  remember(null, done.text);
  if (done.tasks) await drawTiles(tiles().map(idOf));
}

async function acceptAll() {
  const score = Number(least.value);
  const planned = await send(`${base}/gallery/accept`, { min_score: score, dry_run: true });
  if (planned.error) return say(planned.error);
  const what = `${planned.count} ${planned.count === 1 ? "task" : "tasks"} without an annotation ${planned.count === 1 ? "has" : "have"} masks that all score ${score.toFixed(2)} or more.`;
  if (!planned.count) return say(what);
  const answer = await ask("Accept all above a score", `${what} Each becomes an annotation, and a reference.`, [[`Accept ${planned.count}`, "yes"]]);
  if (answer !== "yes") return;
  const done = await send(`${base}/gallery/accept`, { min_score: score });
  remember(done.batch, done.error || `${done.count} are being accepted. u takes them back.`);
}

function why(link) {
  document.querySelector("#why-picture").src = link.getAttribute("href");
  document.querySelector("#why").showModal();
}

grid.addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  if (!button) return;
  const tile = button.closest(".tile");
  if (button.dataset.act === "draw") begin(tile, { base, ids: () => inView(), kept, ended });
  if (button.dataset.act === "accept") decide(tile, accept);
  if (button.dataset.act === "wrong") decide(tile, reject);
  if (button.dataset.act === "remove") remove(tile);
  if (button.dataset.act === "why" && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    why(button);
  }
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
  const tile = current();
  const isOnTile = event.target === tile;
  if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "?") show("#keys");
  else if (event.key === "u") takeBack();
  else if (event.key === "a" && tile) decide(tile, accept);
  else if (event.key === "x" && tile) decide(tile, reject);
  else if (event.key === "Enter" && isOnTile) tile.querySelector(".open")?.click();
  else if (event.key === " " && !event.target.closest("button, a, summary")) {
    const isBefore = grid.classList.toggle("is-before");
    say(isBefore ? "Masks before the last change" : "Masks as they are now");
  } else return;
  event.preventDefault();
});

for (const size of document.querySelectorAll('[name="size"]')) {
  size.addEventListener("change", () => {
    grid.dataset.size = size.value;
    try { localStorage.setItem("softmatcher-size", size.value); } catch { /* private windows */ }
  });
}
try {
  const kept = localStorage.getItem("softmatcher-size");
  const radio = kept && document.querySelector(`[name="size"][value="${CSS.escape(kept)}"]`);
  if (radio) {
    radio.checked = true;
    grid.dataset.size = kept;
  }
} catch { /* private windows */ }

for (const select of root.querySelectorAll(".filters select")) select.addEventListener("change", () => select.form.submit());
document.querySelector("#show").hidden = true;
least.addEventListener("input", showLeast);
document.querySelector("#save-least").addEventListener("click", async () => {
  const done = await send(`${base}/gallery/min-score`, { min_score: Number(least.value) });
  if (done.error) return say(done.error);
  least.dataset.saved = done.min_score;
  showLeast();
  say(`Regions below ${done.min_score} are left out from now on`);
  notedAt = 0;
});
document.querySelector("#accept-all").addEventListener("click", acceptAll);
undoButton.addEventListener("click", takeBack);
document.querySelector("#show-keys").addEventListener("click", () => show("#keys"));
document.addEventListener("visibilitychange", () => { if (!document.hidden) notedAt = 0; });
showLeast();
poll();
