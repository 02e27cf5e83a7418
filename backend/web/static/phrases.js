// A phrase tried on the tiles of the screen: what would they become? Nothing is kept before Keep.
import { hide, show, TILES_A_REQUEST } from "./preview.js";
import { say, send } from "./talk.js";

let trying = false;

// A tile that is drawn anew loses its preview, so the gallery waits.
export const isTrying = () => trying;

export function offerPhrases(base, ids) {
  const form = document.querySelector("#phrase");
  if (!form) return;
  const text = document.querySelector("#phrase-text");
  const label = document.querySelector("#phrase-label");
  const keep = document.querySelector("#phrase-keep");
  const cancel = document.querySelector("#phrase-cancel");
  let turn = 0;

  // What the page has of the label already stays: a phrase is added to it.
  const phrases = () => {
    const known = label.selectedOptions[0].dataset.text;
    return { [label.value]: known ? `${known}; ${text.value}` : text.value };
  };

  function end() {
    turn += 1;
    trying = false;
    keep.disabled = true;
    cancel.hidden = true;
    hide();
  }

  label.addEventListener("change", end);
  text.addEventListener("input", () => { keep.disabled = true; });
  cancel.addEventListener("click", end);

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    end();
    const mine = turn;
    trying = true;
    cancel.hidden = false;
    const wanted = { phrases: phrases() };
    const shown = ids();
    let found = 0;
    for (let start = 0; start < shown.length; start += TILES_A_REQUEST) {
      const answer = await send(`${base}/gallery/preview-phrases`, { ...wanted, ids: shown.slice(start, start + TILES_A_REQUEST) });
      if (turn !== mine) return;
      if (answer.error) {
        say(answer.error);
        end();
        return;
      }
      for (const one of answer.tiles) {
        show(one.id, one);
        found += one.regions.length > 0;
      }
    }
    keep.disabled = false;
    say(`Preview: the phrase finds something on ${found} of ${shown.length} tiles`);
  });

  keep.addEventListener("click", async () => {
    const wanted = phrases();
    const done = await send(`${base}/phrases`, { phrases: wanted });
    if (done.error) {
      say(done.error);
      return;
    }
    label.selectedOptions[0].dataset.text = wanted[label.value];
    text.value = "";
    end();
    say("The phrase is kept; predictions follow when they are next retrieved");
  });
}
