// The state of the cluster, asked for anew every two seconds.

import { failure } from "/pages/stream.js";

const EVERY_MS = 2000;
const at = (id) => document.getElementById(id);

function cell(kind, value, name) {
  const made = document.createElement(kind);
  if (name) made.dataset.name = name;
  if (value?.note) {
    // words that may take all the room there is
    made.className = "wide error";
    made.colSpan = value.columns;
    made.textContent = value.note;
  } else if (typeof value === "number") {
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
    row.append(...values.map((value, place) => cell(kind, value, kind === "td" && names[place])));
    return row;
  };
  const head = line("th", names);
  // a heading stands where the numbers below it stand
  names.forEach((_, place) => {
    const isNumber = rows.some((row) => typeof row[place] === "number" || row[place]?.share);
    head.children[place]?.classList.toggle("number", isNumber);
  });
  at(id).replaceChildren(head, ...rows.map((row) => line("td", row)));
}

function sums(values) {
  at("sums").replaceChildren(...values.map(([name, value]) => {
    const made = document.createElement("div");
    for (const [kind, text] of [["dt", name], ["dd", value]]) {
      made.append(Object.assign(document.createElement(kind), { textContent: text }));
    }
    return made;
  }));
}

const total = (rows, name) => rows.reduce((sum, one) => sum + one[name], 0);
const percent = (part, whole) => (whole > 0 ? `${Math.round((100 * part) / whole)} %` : "-");

function groupsOf(ranks) {
  const groups = new Map();
  for (const one of ranks) {
    const key = `${one.pool}/${one.group}`;
    groups.set(key, [...(groups.get(key) ?? []), one]);
  }
  return [...groups.values()].map((members) => {
    const blocks = total(members, "total_blocks");
    return [members[0].pool, members[0].group, members[0].role,
      members.some((one) => one.draining) ? "draining" : "ready", members.length,
      total(members, "num_running"), total(members, "num_waiting"),
      { share: [blocks - total(members, "free_blocks"), blocks] }];
  });
}

async function look() {
  try {
    const key = sessionStorage.getItem("baleen-key");
    const response = await fetch("/v1/cluster", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
    if (!response.ok) throw await failure(response);
    const { routers } = await response.json();
    fill(
      "routers",
      ["Address", "State", "Policy", "Ranks", "Running", "Queued", "Queued tokens", "Admitted", "Shed", "Cache hits"],
      routers.map((one) => one.error
        ? [one.address, { note: one.error, columns: 9 }]
        : [one.address, one.leaving ? "leaving" : "serving", one.policy, one.num_ranks, one.num_active, one.num_queued,
           one.queued_tokens, one.num_admitted, one.num_shed,
           { share: [one.cached_prompt_tokens, one.prompt_tokens] }]),
    );
    // every router knows all ranks; the first that answers tells of them
    const ranks = routers.find((one) => one.ranks)?.ranks ?? [];
    const live = routers.filter((one) => one.ranks);
    const blocks = total(ranks, "total_blocks");
    sums([
      ["Running", total(live, "num_active").toLocaleString("en")],
      ["Queued", total(live, "num_queued").toLocaleString("en")],
      ["Ranks", ranks.length.toLocaleString("en")],
      ["Blocks in use", percent(blocks - total(ranks, "free_blocks"), blocks)],
      ["Prompt tokens cached", percent(total(live, "cached_prompt_tokens"), total(live, "prompt_tokens"))],
    ]);
    fill(
      "groups",
      ["Pool", "Group", "Role", "State", "Ranks", "Running", "Waiting", "Blocks in use"],
      groupsOf(ranks),
    );
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
    at("state").title = error.doc ?? "";
  }
  setTimeout(look, EVERY_MS);
}

look();
