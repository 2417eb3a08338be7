// Calls of the API, with the key of this tab if it has one. The key lives in sessionStorage and nowhere else.

const KEY = "rewards-key";

export class Problem extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

export const forgetKey = () => sessionStorage.removeItem(KEY);

export function keepKey(key) {
  if (!/^[\x21-\x7e]+$/.test(key)) throw new Problem(401, "A key has no spaces and only ASCII characters.");
  sessionStorage.setItem(KEY, key);
}

// Without what http://name:key@host says: a browser fetches no such address, and a key does not belong in code.
export function address(path) {
  const url = new URL(path, document.baseURI);
  url.username = url.password = "";
  return url;
}

export async function call(path, options = {}) {
  const headers = hasKey() ? { authorization: `Bearer ${sessionStorage.getItem(KEY)}` } : {};
  let response;
  try {
    response = await fetch(address(path), { ...options, headers, cache: "no-store" });
  } catch {
    throw new Problem(0, "The server cannot be reached. Is it running?");
  }
  if (!response.ok) throw await problemOf(response);
  return response.json();
}

async function problemOf(response) {
  const said = await response.json().catch(() => ({}));
  return new Problem(response.status, textOf({ title: `HTTP ${response.status}`, ...said }), response.headers.get("retry-after"));
}

// A problem (RFC 9457) as a person reads it.
export const textOf = (problem) => (problem.detail ? `${problem.title}: ${problem.detail}` : problem.title);
