// The table of images and rewards: value, bar in the reward's range, what failed and why, the best of each.

import { textOf } from "./api.js";
import { element } from "./elements.js";

// pictures: [{name, url, prompt}] and infos: [RewardInfo] as they were asked for; items: those of the answer.
export function table(pictures, infos, items) {
  const scales = infos.map((info) => scale(info, items.flatMap((item) => item.scores[info.id].value ?? [])));
  const rows = pictures.map((picture, index) =>
    element(
      "tr",
      { role: "row" },
      about(picture),
      ...cells(infos, scales, items[index].scores),
    ),
  );
  return framed(infos, rows);
}

// The same table before there is an answer.
export function waiting(pictures, infos) {
  const empty = (info) => element("td", { role: "cell", "data-label": info.id }, element("i", { class: "shimmer" }));
  return framed(
    infos,
    pictures.map((picture) => element("tr", { role: "row" }, about(picture), ...infos.map(empty))),
  );
}

function framed(infos, rows) {
  const head = element(
    "tr",
    { role: "row" },
    element("th", { scope: "col", role: "columnheader" }, "image"),
    ...infos.map((info) =>
      element(
        "th",
        { scope: "col", role: "columnheader", title: `revision ${info.revision}` },
        element("b", {}, info.id),
        element("small", {}, direction(info)),
        element("small", {}, span(info)),
      ),
    ),
  );
  return element(
    "table",
    { role: "table" },
    element("thead", { role: "rowgroup" }, head),
    element("tbody", { role: "rowgroup" }, ...rows),
  );
}

function about({ name, url, prompt }) {
  const text = element("p", {}, element("b", {}, name), element("small", { title: prompt }, prompt));
  return element("th", { scope: "row", role: "rowheader" }, element("div", { class: "about" }, thumbnail(url), text));
}

export function thumbnail(url) {
  const image = element("img", { src: url, alt: "" });
  image.addEventListener("error", () => image.replaceWith(element("span", { class: "torn", title: "cannot be shown" }, "?")));
  return image;
}

// What went wrong with the image itself went wrong under every reward: it is said once.
function cells(infos, scales, scores) {
  const wrong = new Set(infos.map(({ id }) => (scores[id].error ? textOf(scores[id].error) : null)));
  if (wrong.size === 1 && !wrong.has(null)) {
    return [element("td", { role: "cell", colspan: infos.length }, failure(scores[infos[0].id].error))];
  }
  return infos.map((info, column) => cell(info, scales[column], scores[info.id]));
}

const failure = (problem) => element("span", { class: "failed", title: problem.type }, textOf(problem));

function cell(info, { lowest, highest, best, decimals }, { value, parts, error }) {
  const made = element("td", { role: "cell", "data-label": info.id });
  if (error) {
    made.append(failure(error));
    return made;
  }
  const number = element("data", { value: String(value), title: String(value) }, value.toFixed(decimals));
  made.append(number);
  if (value === best) {
    made.classList.add("best");
    made.append(element("span", { class: "mark" }, "best"));
  }
  made.append(bar(lowest, highest, value));
  if (parts) made.append(element("small", {}, Object.entries(parts).map(([name, part]) => `${name}\u00a0${part}`).join(" · ")));
  return made;
}

// Bars begin at zero where the range has it. An open end is where the furthest value is, or zero.
function scale({ range, higher_is_better: higher }, values) {
  const [lowest, highest] = [range[0] ?? Math.min(0, ...values), range[1] ?? Math.max(0, ...values)];
  const furthest = Math.max(...values.map(Math.abs));
  const decimals = furthest >= 100 ? 1 : furthest >= 10 ? 2 : 3;
  const differ = values.some((value) => value !== values[0]);
  return { lowest, highest, decimals, best: differ ? (higher ? Math.max(...values) : Math.min(...values)) : null };
}

function bar(lowest, highest, value) {
  const place = (at) => (100 * (Math.min(Math.max(at, lowest), highest) - lowest)) / (highest - lowest || 1);
  const [zero, end] = [place(0), place(value)];
  const fill = element("i", {});
  fill.style.left = `${Math.min(zero, end)}%`;
  fill.style.width = `${Math.abs(end - zero)}%`;
  return element("span", { class: "bar", "aria-hidden": "true" }, fill);
}

export const direction = (info) => (info.higher_is_better ? "↑ higher is better" : "↓ lower is better");

export function span({ range: [lowest, highest] }) {
  if (lowest === null && highest === null) return "no bounds";
  if (lowest === null) return `at most ${highest}`;
  return highest === null ? `at least ${lowest}` : `${lowest} to ${highest}`;
}
