"use strict";
const settings = JSON.parse(document.body.dataset.settings);
const byId = id => document.getElementById(id);
const drop = byId("drop"), files = byId("files"), results = byId("results"), status = byId("status");
let sending = Promise.resolve();

function say(text, bad = false) {
  status.textContent = text;
  status.classList.toggle("bad", bad);
}

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function figure(value) {
  return value === null ? "none" : Math.abs(value) < 0.001 && value ? value.toExponential(1) : value.toFixed(3);
}

function card(file, result) {
  const made = element("li", "card " + result.decision);
  const picture = element("div", "picture"), frame = element("div");
  const image = element("img");
  image.alt = "";
  image.src = URL.createObjectURL(file);
  image.onload = () => {
    // small images are shown larger, with the map in their place
    const scale = Math.min(230 / image.naturalHeight, 248 / image.naturalWidth, 4);
    frame.style.width = Math.max(1, Math.round(scale * image.naturalWidth)) + "px";
    URL.revokeObjectURL(image.src);
  };
  image.onerror = () => { URL.revokeObjectURL(image.src); frame.replaceChildren(element("span", "soft", "no preview")); };
  frame.append(image);
  if (result.map && result.map.peak > result.map.from) {
    const map = element("img", "map");
    map.alt = "";
    map.src = "data:image/png;base64," + result.map.png;
    frame.append(map);
  }
  picture.append(frame);
  const text = element("div", "text");
  text.append(element("p", "decision", result.decision));
  if (result.error) text.append(element("p", "why", result.error));
  else {
    text.append(element("p", "figures", "score " + figure(result.score) + ", threshold " + figure(result.threshold)));
    text.append(element("p", "figures", "p-value " + figure(result.p_value)));
    if (result.reason && result.reason !== "normal") text.append(element("p", "why", result.reason));
    for (const [space, value] of Object.entries(result.spaces || {}))
      text.append(element("p", "soft", space + " " + figure(value)));
  }
  if (result.decision === "anomaly" && result.map && result.map.peak <= result.map.from)
    text.append(element("p", "soft", "No single place stands out: the image is unusual as a whole."));
  for (const note of result.notes || []) text.append(element("p", "soft", note));
  text.append(element("p", "soft name", result.name));
  made.append(picture, text);
  return made;
}

async function send(chosen) {
  const bytes = chosen.reduce((sum, file) => sum + file.size, 0);
  if (chosen.length > settings.images) return say("At most " + settings.images + " images at a time.", true);
  if (bytes > settings.body) return say("These images are too large together.", true);
  say("Looking at " + chosen.length + (chosen.length === 1 ? " image ..." : " images ..."));
  const body = new FormData();
  for (const file of chosen) body.append("image", file, file.name);
  let answer, found;
  try {
    answer = await fetch("score" + (settings.maps ? "?maps=1" : ""), { method: "POST", body });
    found = await answer.json();
  } catch (error) {
    return say("The server cannot be reached.", true);
  }
  if (!found.results) return say(found.error || "The server answered " + answer.status + ".", true);
  results.prepend(...found.results.map((result, i) => card(chosen[i], result)));
  byId("legend").hidden = !document.querySelector(".map");
  const count = kind => found.results.filter(result => result.decision === kind).length;
  const unreadable = count("unreadable");
  say(count("anomaly") + " of " + chosen.length + (chosen.length === 1 ? " image is" : " images are") + " unusual"
    + (unreadable ? ", " + unreadable + " cannot be read." : "."), unreadable === chosen.length);
}

function take(list) {
  const chosen = [...list].filter(file => file.size);
  if (chosen.length) sending = sending.then(() => send(chosen));
  else say("There is no file in that.", true);
}

files.addEventListener("change", () => { take(files.files); files.value = ""; });
for (const name of ["dragenter", "dragover"])
  document.addEventListener(name, event => { event.preventDefault(); drop.classList.add("over"); });
document.addEventListener("dragleave", event => { if (!event.relatedTarget) drop.classList.remove("over"); });
document.addEventListener("drop", event => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", event => { if (event.clipboardData.files.length) take(event.clipboardData.files); });
byId("maps").addEventListener("change", event => results.classList.toggle("no-maps", !event.target.checked));
