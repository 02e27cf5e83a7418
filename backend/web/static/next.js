// The tab of what comes next: right or wrong in one click.
import { accept, reject, undo } from "./decide.js";
import { say } from "./talk.js";

const root = document.querySelector("#next");
const base = root.dataset.base;
const undoButton = document.querySelector("#undo");
let last = null;

async function decide(tile, how) {
  const done = await how(base, tile);
  if (!done) return;
  say(done.text);
  if (done.error) return;
  last = { batch: done.batch, tile };
  tile.classList.add("decided");
  undoButton.hidden = false;
  const open = [...document.querySelectorAll("#confirm-next .tile:not(.decided)")];
  (open[0] || undoButton).focus();
}

async function takeBack() {
  if (!last) return;
  const done = await undo(base, last.batch);
  say(done.text);
  if (done.error) return;
  last.tile.classList.remove("decided");
  last = null;
  undoButton.hidden = true;
}

root.addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  const tile = button?.closest(".tile");
  if (button?.dataset.act === "accept") decide(tile, accept);
  if (button?.dataset.act === "wrong") decide(tile, reject);
});
undoButton?.addEventListener("click", takeBack);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
  const tile = document.activeElement?.closest?.("#confirm-next .tile:not(.decided)");
  if (event.key === "u") takeBack();
  else if (event.key === "a" && tile) decide(tile, accept);
  else if (event.key === "x" && tile) decide(tile, reject);
  else return;
  event.preventDefault();
});
