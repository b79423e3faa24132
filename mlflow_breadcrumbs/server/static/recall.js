// Lets who may edit a model recall this page's version, or withdraw that, and shows before what it
// concerns. Without this script there is no button for it.

const LOGIN = "The server doesn't know you any more: your login may have expired. Reload this page, log in, and try again.";

const part = (name) => document.getElementById(`recall-${name}`);
const dialog = part("dialog");
const { root, lineage, name, version } = dialog.dataset;
const withdraw = "withdraw" in dialog.dataset;
let sending = false;

// What the server answers in JSON; whatever else comes is an error, in words.
async function ask(address, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  const answer = await fetch(address, { ...options, headers, redirect: "manual" }).catch(() => null);
  if (!answer) throw new Error("The server can't be reached: whether it has done this is not known.");
  const said = await answer.json().catch(() => null);
  if (answer.ok && said) return said;
  // Who is sent to a page to log in, or gets one, has been forgotten as well.
  if (answer.ok || answer.status === 401 || answer.type === "opaqueredirect") throw new Error(LOGIN);
  throw new Error(said?.error || `The server answered ${answer.status} without a reason; its log has more.`);
}

const short = (uri) => uri.replace(/^models:\//, "");
const counted = (count) => (count === 1 ? "One version was" : `${count} versions were`);

function told(below, live) {
  const many = below.length ? `${counted(below.length)} made from it, directly or through others.` : "Nothing was made from it.";
  return `${many} ${live.length ? `Live now: ${live.join(", ")}.` : "No alias points at any of these now."}`;
}

function item(node) {
  const line = document.createElement("li");
  line.append(`${short(node.uri)} `);
  for (const alias of node.aliases) {
    const chip = document.createElement("span");
    chip.className = "alias";
    chip.textContent = `@${alias}`;
    line.append(chip, " ");
  }
  return line;
}

// What was made from this version, as the registry has it now: what is live comes first.
async function look() {
  part("concerned").textContent = "Looking for what was made from it …";
  part("affected").hidden = true;
  try {
    const page = await ask(lineage);
    const below = page.nodes.filter((node) => node.column > 0);
    below.sort((one, other) => (other.aliases.length > 0) - (one.aliases.length > 0));
    const concerned = [...page.nodes.filter((node) => node.uri === page.uri), ...below];
    const live = concerned.flatMap((node) => node.aliases.map((alias) => `${short(node.uri)} @${alias}`));
    part("concerned").textContent = told(below, live);
    part("affected").replaceChildren(...below.map(item));
    part("affected").hidden = below.length === 0;
  } catch (error) {
    part("concerned").textContent = `What was made from it can't be shown. ${error.message}`;
  }
}

async function send(event) {
  event.preventDefault();
  if (sending) return;
  sending = true;
  part("fault").textContent = "";
  const asked = { name, version, withdraw, reason: part("reason").value, user: part("user").value };
  const headers = { "Content-Type": "application/json" };
  try {
    await ask(`${root}recall`, { method: "POST", headers, body: JSON.stringify(asked) });
    history.replaceState(null, "", "#recall");
    location.reload();
  } catch (error) {
    part("fault").textContent = error.message;
    sending = false;
  }
}

function open() {
  part("form").reset();
  part("fault").textContent = "";
  dialog.showModal();
  part("reason").focus();
  look();
}

// The server says whether it takes recalls, and whether who asks may edit this model.
async function offer() {
  const said = await ask(`${root}guard.json?name=${encodeURIComponent(name)}`);
  if (!said.recalls || !said.may_edit) return;
  for (const field of said.accounts ? [] : [part("user"), part("user").labels[0]]) field.hidden = false;
  part("user").required = !said.accounts;
  part("open").addEventListener("click", open);
  part("cancel").addEventListener("click", () => dialog.close());
  part("form").addEventListener("submit", send);
  part("open").hidden = false;
}

if (location.hash === "#recall") document.getElementById("recall").focus(); // the page after a recall
offer().catch(() => {}); // then there is nothing to offer
