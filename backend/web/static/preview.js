// Drawing on a tile: what would the tiles on the screen become? Nothing is kept before Keep.
import { say, send } from "./talk.js";

const bar = document.querySelector("#try");
const keep = document.querySelector("#try-keep");
const negative = document.querySelector("#try-negative");
const SVG = "http://www.w3.org/2000/svg";
export const TILES_A_REQUEST = 4;
const DRAG_PX = 4;

let drawing = null;

export const isDrawing = () => drawing !== null;

// The part of the square that the photograph fills.
function frame(canvas, photo) {
  const box = canvas.getBoundingClientRect();
  const scale = Math.min(box.width / photo.naturalWidth, box.height / photo.naturalHeight);
  const width = photo.naturalWidth * scale;
  const height = photo.naturalHeight * scale;
  return { left: box.left + (box.width - width) / 2, top: box.top + (box.height - height) / 2, width, height, box };
}

function place(event) {
  const at = frame(drawing.canvas, drawing.photo);
  const share = (value) => Math.min(1, Math.max(0, value));
  return [share((event.clientX - at.left) / at.width), share((event.clientY - at.top) / at.height)];
}

function paint() {
  const { canvas, photo, strokes } = drawing;
  const at = frame(canvas, photo);
  canvas.width = at.box.width * devicePixelRatio;
  canvas.height = at.box.height * devicePixelRatio;
  const pen = canvas.getContext("2d");
  pen.scale(devicePixelRatio, devicePixelRatio);
  const left = at.left - at.box.left;
  const top = at.top - at.box.top;
  for (const stroke of strokes) {
    const points = stroke.points.map(([x, y]) => [left + x * at.width, top + y * at.height]);
    pen.beginPath();
    if (points.length === 1) pen.arc(...points[0], 5, 0, 2 * Math.PI);
    else points.forEach(([x, y], number) => (number ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    for (const [width, colour] of [[7, "#000"], [4, stroke.is_positive ? "#fff" : "#ff3b30"]]) {
      pen.lineWidth = width;
      pen.strokeStyle = colour;
      pen.stroke();
    }
  }
}

export function show(id, { size, regions }) {
  const tile = document.querySelector(`#task-${id}`);
  const svg = tile?.querySelector(".masks");
  if (!svg) return;
  svg.querySelector(".preview")?.remove();
  if (regions.length) svg.setAttribute("viewBox", `0 0 ${size[0]} ${size[1]}`);
  const group = document.createElementNS(SVG, "g");
  group.setAttribute("class", "preview");
  for (const region of regions) {
    for (const name of ["rim", "line"]) {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      path.setAttribute("d", region.path);
      if (name === "line") {
        path.setAttribute("fill", region.colour);
        path.setAttribute("stroke", region.colour);
      }
      group.append(path);
    }
  }
  svg.append(group);
  tile.classList.add("previewed");
}

export function hide() {
  for (const one of document.querySelectorAll(".previewed")) {
    one.classList.remove("previewed");
    one.querySelector(".preview")?.remove();
  }
}

async function preview() {
  const mine = drawing;
  const turn = ++mine.turn;
  const isOld = () => drawing !== mine || mine.turn !== turn;
  mine.name = null;
  keep.disabled = true;
  if (!mine.strokes.length) return;
  const body = { label: document.querySelector("#try-label").value, strokes: mine.strokes };
  const made = await send(`${mine.base}/tasks/${mine.tile.dataset.task}/preview`, body);
  if (isOld()) return;
  if (made.error) {
    say(made.error);
    return;
  }
  mine.name = made.name;
  keep.disabled = false;
  show(made.task, made);
  const ids = mine.ids().filter((id) => id !== made.task);
  let count = 0;
  for (let start = 0; start < ids.length; start += TILES_A_REQUEST) {
    const answer = await send(`${mine.base}/gallery/preview`, { name: made.name, ids: ids.slice(start, start + TILES_A_REQUEST) });
    if (isOld()) return;
    for (const one of answer.tiles || []) show(one.id, one);
    count += answer.tiles?.length || 0;
  }
  say(`Preview: what ${count + 1} tiles would become`);
}

function end() {
  if (!drawing) return;
  const { tile, canvas, ended } = drawing;
  drawing = null;
  bar.hidden = true;
  canvas.hidden = true;
  tile.classList.remove("drawing");
  hide();
  tile.focus();
  ended();
}

export function begin(tile, options) {
  end();
  const canvas = tile.querySelector(".strokes");
  const photo = tile.querySelector(".photo");
  if (!photo.naturalWidth) {
    say("The photograph is not here yet: try again in a moment");
    return;
  }
  drawing = { tile, canvas, photo, strokes: [], turn: 0, name: null, ...options };
  canvas.hidden = false;
  tile.classList.add("drawing");
  bar.hidden = false;
  paint();
  canvas.onpointerdown = (event) => {
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    const stroke = { points: [place(event)], is_positive: !(negative.checked || event.altKey) };
    let last = [event.clientX, event.clientY];
    drawing.strokes.push(stroke);
    paint();
    canvas.onpointermove = (move) => {
      if (Math.hypot(move.clientX - last[0], move.clientY - last[1]) < DRAG_PX || stroke.points.length > 200) return;
      last = [move.clientX, move.clientY];
      stroke.points.push(place(move));
      paint();
    };
    canvas.onpointerup = canvas.onpointercancel = () => {
      canvas.onpointermove = canvas.onpointerup = canvas.onpointercancel = null;
      preview();
    };
  };
}

document.querySelector("#try-clear").addEventListener("click", () => {
  if (!drawing) return;
  drawing.strokes = [];
  paint();
  preview();
});
document.querySelector("#try-label").addEventListener("change", () => { if (drawing) preview(); });
document.querySelector("#try-cancel").addEventListener("click", end);
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && drawing) end(); });
keep.addEventListener("click", async () => {
  const { name, base, kept } = drawing;
  const done = await send(`${base}/gallery/keep`, { name });
  if (done.error) {
    say(done.error);
    return;
  }
  kept(done);
  end();
});
