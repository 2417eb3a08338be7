// The request as curl and as Python. What is typed in ends up quoted, for the shell, for curl and for Python.

const quotedForShell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const quotedForCurl = (text) => `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;

export const partName = (index) => `image${index}`;

// The JSON of the part `request`.
export const described = (pictures, rewards) => ({
  rewards,
  items: pictures.map(({ prompt }, index) => ({ prompt, image: { part: partName(index) } })),
});

// JSON comes on standard input: within curl's -F a semicolon in a prompt would end it.
export function curl(url, pictures, rewards, withKey) {
  const parts = pictures.map(
    ({ name, type }, index) => `-F ${quotedForShell(`${partName(index)}=@${quotedForCurl(name)};type=${type}`)}`,
  );
  return [
    `curl ${quotedForShell(`${url}v1/scores`)}`,
    ...(withKey ? ['-H "Authorization: Bearer $REWARDS_API_KEY"'] : []),
    ...parts,
    "-F 'request=<-;type=application/json' <<'JSON'",
  ].join(" \\\n  ") + `\n${readable(described(pictures, rewards))}\nJSON\n`;
}

const readable = ({ rewards, items }) =>
  `{"rewards": ${spaced(rewards)}, "items": [\n${items.map((item) => `  ${JSON.stringify(item)}`).join(",\n")}\n]}`;

const spaced = (values) => `[${values.map((value) => JSON.stringify(value)).join(", ")}]`;

// Every JSON string is a Python string too.
const list = (values) =>
  values.length > 1 ? `[\n${values.map((value) => `    ${JSON.stringify(value)},\n`).join("")}]` : spaced(values);

export function python(url, pictures, rewards, withKey) {
  const prompts = pictures.map(({ prompt }) => prompt);
  const same = prompts.every((prompt) => prompt === prompts[0]);
  const key = withKey ? ', api_key=os.environ["REWARDS_API_KEY"]' : "";
  return `${withKey ? "import os\n\n" : ""}from reward_services import RewardClient

images = ${list(pictures.map(({ name }) => name))}
prompts = ${same ? `${spaced(prompts.slice(0, 1))} * len(images)` : list(prompts)}

with RewardClient(${JSON.stringify(url)}${key}) as client:
    scores = client.score(images, prompts, rewards=${spaced(rewards)})

for reward, column in scores.items():
    for image, score in zip(images, column):
        print(reward, image, score.value if score.ok else score.error.detail or score.error.title)
`;
}
