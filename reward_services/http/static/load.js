// How busy each reward is, as the server says it.

import { call } from "./api.js";
import { byId, element } from "./elements.js";

export async function showLoad() {
  try {
    byId("load").replaceChildren(...(await call("v1/load")).data.map(row));
    byId("load-note").textContent = "";
  } catch (problem) {
    byId("load").replaceChildren();
    byId("load-note").textContent = problem.message;
  }
}

function row({ id, in_flight_images: inFlight, images_per_s: perSecond, latency_ms: latency, failed_images: failed }) {
  const numbers = [inFlight, shown(perSecond), milliseconds(latency?.p50), milliseconds(latency?.p95), failed];
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, id),
    ...numbers.map((text) => element("td", { class: text === "–" || text === 0 ? "nothing" : "" }, String(text))),
  );
}

const shown = (number) => (number === 0 ? 0 : number.toFixed(number < 10 ? 2 : 0));

const milliseconds = (time) => (time === undefined ? "–" : `${time < 100 ? time.toFixed(1) : Math.round(time)} ms`);
