// The page: what is chosen, what is asked, and what came of it.

import { Problem, address, call, forgetKey, hasKey, keepKey, textOf } from "./api.js";
import { byId, element, plural } from "./elements.js";
import { showLoad } from "./load.js";
import { direction, span, table, thumbnail, waiting } from "./results.js";
import { curl, described, partName, python } from "./snippets.js";

const SERVER = address(".").href;
const SIGNATURES = [
  ["image/png", /^\x89PNG/],
  ["image/jpeg", /^\xff\xd8\xff/],
  ["image/webp", /^RIFF....WEBP/s],
];
const LOOK_AGAIN_MS = 2000;
const EXAMPLE = { name: "picture.png", type: "image/png", own: "" };

let reading = Promise.resolve(); // of the files that were chosen
let pictures = []; // {name, type, content, url, own}; own is its own prompt, or empty
let infos = []; // the rewards, as the server describes them
let limits = null;

// ---------------------------------------------------------------------------------------- what the server has

async function learn() {
  let missing; // by name, the problem why it has never answered
  try {
    ({ data: infos, limits, missing = {} } = await call("v1/rewards"));
  } catch (problem) {
    byId("server").textContent = "";
    byId("rewards").replaceChildren(element("li", { class: "soft" }, "None to be seen yet."));
    say(problem);
    return;
  }
  byId("key-form").hidden = true;
  byId("forget-key").hidden = !hasKey();
  byId("server").textContent = `${new URL(SERVER).host}, ${plural(infos.length, "reward")}`;
  byId("rewards").replaceChildren(...infos.map(choice), ...Object.entries(missing).map(absent));
  say();
  showCode();
  showLoad();
}

function choice(info) {
  const box = element("input", { type: "checkbox", name: "reward", value: info.id, checked: info.ready });
  const facts = info.ready ? `${direction(info)}, ${span(info)}` : "not ready";
  return element("li", {}, element("label", {}, box, element("b", {}, info.id), element("small", { class: "soft" }, facts)));
}

// One that has never answered: nothing is known of it but its name.
function absent([name, problem]) {
  const box = element("input", { type: "checkbox", disabled: true });
  const why = element("small", { class: "soft" }, textOf(problem));
  return element("li", {}, element("label", {}, box, element("b", {}, name), why));
}

const ticked = () => [...document.querySelectorAll("input[name=reward]:checked")].map((box) => box.value);

// ----------------------------------------------------------------------------------------------- what is chosen

function add(files) {
  reading = reading.then(() => read(files));
  return reading;
}

async function read(files) {
  for (const file of files) {
    try {
      const content = await file.arrayBuffer();
      const type = typeOf(content) ?? (file.type || "application/octet-stream");
      const blob = new Blob([content], { type });
      pictures.push({ name: file.name, type, content: blob, url: URL.createObjectURL(blob), own: "" });
    } catch {
      say(new Problem(0, `${file.name} cannot be read.`));
    }
  }
  showPictures();
}

// By what a file begins with: names are often wrong, and the server trusts the type it is told.
function typeOf(content) {
  const start = String.fromCharCode(...new Uint8Array(content.slice(0, 12)));
  return SIGNATURES.find(([, signature]) => signature.test(start))?.[0];
}

function showPictures() {
  byId("pictures").replaceChildren(...pictures.map(pictureRow));
  showCode();
}

function pictureRow(picture) {
  const { name } = picture;
  const own = element("input", { type: "text", placeholder: "a prompt of its own", "aria-label": `Prompt of ${name}` });
  own.value = picture.own;
  own.addEventListener("input", () => {
    picture.own = own.value;
  });
  const remove = element("button", { type: "button", class: "quiet", "aria-label": `Remove ${name}` }, "×");
  remove.addEventListener("click", () => {
    pictures = pictures.filter((other) => other !== picture);
    showPictures();
    byId("files").focus();
  });
  return element("li", {}, thumbnail(picture.url), element("span", {}, element("b", { title: name }, name), own), remove);
}

const withPrompt = (picture) => ({ ...picture, prompt: picture.own || byId("prompt").value });

// ---------------------------------------------------------------------------------------------- what is asked

function showCode() {
  const chosen = (pictures.length ? pictures : [EXAMPLE]).map(withPrompt);
  const write = document.querySelector("input[name=language]:checked").value === "curl" ? curl : python;
  byId("code").textContent = write(SERVER, chosen, ticked(), hasKey());
  byId("copy").textContent = "Copy";
  const where = "Run it where the images lie.";
  byId("code-note").textContent = hasKey() ? `${where} The key is taken from REWARDS_API_KEY.` : where;
}

// What stands in the way of asking, with the place to put it right.
function hindrance(rewards) {
  const [bytes, most] = [pictures.reduce((sum, { content }) => sum + content.size, 0), limits?.max_body_bytes];
  const reads = infos.find(({ id, modality }) => rewards.includes(id) && modality.includes("text"));
  if (!pictures.length) return ["Choose an image first.", byId("files")];
  if (!rewards.length) return ["Tick a reward first.", document.querySelector("input[name=reward]")];
  if (reads && pictures.some((picture) => !withPrompt(picture).prompt)) return [`Type a prompt: ${reads.id} reads it.`, byId("prompt")];
  if (pictures.length > limits.max_items) return [`At most ${limits.max_items} images at once.`, byId("files")];
  if (bytes > most) return [`More than ${Math.floor(most / 2 ** 20)} MiB at once; remove some images.`, byId("files")];
  return null;
}

async function score() {
  await reading;
  const rewards = ticked();
  const [problem, place] = hindrance(rewards) ?? [];
  say(problem && new Problem(0, problem));
  if (problem) {
    place?.focus();
    return;
  }
  const asked = pictures.map(withPrompt);
  const columns = infos.filter(({ id }) => rewards.includes(id));
  busy(true);
  byId("scores").replaceChildren(waiting(asked, columns));
  try {
    const started = performance.now();
    const { items } = await call("v1/scores", { method: "POST", body: form(asked, rewards) });
    byId("scores").replaceChildren(table(asked, columns, items));
    byId("summary").textContent = summary(items, performance.now() - started);
  } catch (refused) {
    byId("scores").replaceChildren(element("p", { class: "empty" }, "No scores came of this request."));
    say(refused);
  }
  busy(false);
  showLoad();
}

function form(asked, rewards) {
  const body = new FormData();
  body.append("request", new Blob([JSON.stringify(described(asked, rewards))], { type: "application/json" }));
  asked.forEach(({ content, name }, index) => body.append(partName(index), content, name));
  return body;
}

function summary(items, milliseconds) {
  const scores = items.flatMap((item) => Object.values(item.scores));
  const failed = scores.filter(({ error }) => error).length;
  const took = milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
  return `${plural(scores.length - failed, "score")}${failed ? `, ${failed} failed` : ""}, ${took}`;
}

// ------------------------------------------------------------------------------------------------ what is said

function say(problem = null) {
  const later = problem?.retryAfter ? `; try again in ${problem.retryAfter} s` : "";
  const text = problem && problem.status !== 401 ? `${problem.message}${later}` : "";
  // The same again, while a server is gone, is not read out or scrolled to again.
  if (byId("note").textContent !== text) {
    byId("note").textContent = text;
    byId("note").scrollIntoView({ block: "nearest" });
  }
  if (problem?.status === 401) {
    byId("key-note").textContent = hasKey() ? "The server does not know this key." : byId("key-note").textContent;
    byId("key-form").hidden = false;
    byId("key").focus();
  }
}

function busy(isBusy) {
  byId("score").disabled = isBusy;
  byId("score").textContent = isBusy ? "Scoring …" : "Score";
  byId("scores").setAttribute("aria-busy", String(isBusy));
  if (isBusy) byId("summary").textContent = "";
}

async function copy() {
  const code = byId("code");
  getSelection().selectAllChildren(code);
  // Browsers have a clipboard only for https and localhost; elsewhere the old way still works.
  const done = await (navigator.clipboard?.writeText(code.textContent) ?? Promise.reject())
    .then(() => true)
    .catch(() => document.execCommand("copy"));
  byId("copy").textContent = done ? "Copied" : "Press Ctrl-C";
}

// ------------------------------------------------------------------------------------------------- what is done

function on(id, event, act) {
  byId(id).addEventListener(event, (happened) => {
    if (event === "submit") happened.preventDefault();
    act(happened);
  });
}

on("request", "submit", score);
on("request", "input", showCode);
on("files", "change", async ({ target }) => {
  await add([...target.files]);
  target.value = "";
});
on("prompt", "keydown", (pressed) => {
  if (pressed.key === "Enter" && (pressed.ctrlKey || pressed.metaKey)) byId("request").requestSubmit();
});
on("copy", "click", copy);
on("forget-key", "click", () => {
  forgetKey();
  location.reload();
});
on("key-form", "submit", () => {
  try {
    keepKey(byId("key").value.trim());
  } catch (problem) {
    byId("key-note").textContent = problem.message;
    return;
  }
  byId("key").value = "";
  learn();
});
for (const radio of document.querySelectorAll("input[name=language]")) radio.addEventListener("change", showCode);

// A picture dropped anywhere is meant for the page: without this the browser would leave it to show the picture.
for (const event of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(event, (happened) => {
    happened.preventDefault();
    byId("drop").classList.toggle("over", event === "dragover");
    if (event === "drop") add([...happened.dataTransfer.files]);
  });
}

// While somebody looks, and nobody has to type a key first.
setInterval(() => {
  if (document.visibilityState === "visible" && byId("key-form").hidden) (infos.length ? showLoad : learn)();
}, LOOK_AGAIN_MS);

showCode();
learn();
