// How the page talks: to the backend, and to who looks at it.
const said = document.querySelector("#said");
const toast = document.createElement("p");
toast.className = "toast";
toast.hidden = true;
toast.setAttribute("aria-hidden", "true");
document.body.append(toast);
let hides = 0;

export function say(text) {
  said.textContent = text;
  toast.textContent = text;
  toast.hidden = false;
  clearTimeout(hides);
  hides = setTimeout(() => { toast.hidden = true; }, 6000);
}

export async function send(url, body) {
  try {
    const answer = await fetch(url, { method: "POST", headers: { "Content-Type": "application/json", Accept: "application/json" }, body: JSON.stringify(body) });
    return await answer.json();
  } catch {
    return { error: "The backend does not answer: try again in a moment" };
  }
}

export function show(selector) {
  document.querySelector(selector).showModal();
}

// Resolves to the value of the button that was chosen; null for none.
export function ask(title, text, choices) {
  const dialog = document.querySelector("#ask");
  document.querySelector("#ask-title").textContent = title;
  document.querySelector("#ask-text").textContent = text;
  const buttons = document.querySelector("#ask-buttons");
  buttons.replaceChildren();
  return new Promise((resolve) => {
    let chosen = null;
    for (const [name, value] of [...choices, ["Cancel", null]]) {
      const button = document.createElement("button");
      button.textContent = name;
      button.addEventListener("click", () => { chosen = value; });
      buttons.append(button);
    }
    dialog.addEventListener("close", () => resolve(chosen), { once: true });
    dialog.showModal();
  });
}
