// The state of the cluster, asked for anew every two seconds.

import { failure } from "/pages/stream.js";

const EVERY_MS = 2000;
const at = (id) => document.getElementById(id);

function cell(kind, value) {
  const made = document.createElement(kind);
  if (typeof value === "number") {
    made.className = "number";
    made.textContent = value.toLocaleString("en");
  } else if (value && typeof value === "object") {
    // a share: [part, whole]
    const [part, whole] = value.share;
    made.className = "number";
    if (whole > 0) {
      const meter = Object.assign(document.createElement("meter"), { max: whole, value: part });
      made.append(meter, ` ${Math.round((100 * part) / whole)} %`);
    } else {
      made.textContent = "-";
    }
  } else {
    made.textContent = value;
  }
  return made;
}

function fill(id, names, rows) {
  const line = (kind, values) => {
    const row = document.createElement("tr");
    row.append(...values.map((value) => cell(kind, value)));
    return row;
  };
  at(id).replaceChildren(line("th", names), ...rows.map((row) => line("td", row)));
}

async function look() {
  try {
    const key = sessionStorage.getItem("baleen-key");
    const response = await fetch("/v1/cluster", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
    if (!response.ok) throw new Error(await failure(response));
    const { routers } = await response.json();
    fill(
      "routers",
      ["Address", "State", "Policy", "Ranks", "Running", "Queued", "Queued tokens", "Admitted", "Shed", "Cache hits"],
      routers.map((one) => one.error
        ? [one.address, one.error, ...Array(8).fill("")]
        : [one.address, one.leaving ? "leaving" : "serving", one.policy, one.num_ranks, one.num_active, one.num_queued,
           one.queued_tokens, one.num_admitted, one.num_shed,
           { share: [one.cached_prompt_tokens, one.prompt_tokens] }]),
    );
    // every router knows all ranks; the first that answers tells of them
    const ranks = routers.find((one) => one.ranks)?.ranks ?? [];
    fill(
      "ranks",
      ["Pool", "Group", "Rank", "Role", "State", "Running", "Waiting", "Blocks in use"],
      ranks.map((one) => [one.pool, one.group, one.rank, one.role, one.draining ? "draining" : "ready", one.num_running,
        one.num_waiting, { share: [one.total_blocks - one.free_blocks, one.total_blocks] }]),
    );
    at("state").className = "";
    at("state").textContent = `as of ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    at("state").className = "error";
    at("state").textContent = error.message;
  }
  setTimeout(look, EVERY_MS);
}

look();
