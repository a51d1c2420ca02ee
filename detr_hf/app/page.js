// The page in the browser: runs once, when gradio has put page.html into `element`. Pictures go to Python one by one;
// what comes back is kept here, so that threshold, classes and table need nobody else.
const find = (name) => element.querySelector(`[data-${name}]`);
const drop = find("drop"), files = find("files"), viewer = find("viewer"), video = viewer.querySelector("video");
const says = find("says"), strip = find("strip"), work = find("work"), holder = find("picture"), told = find("told");
const slider = find("threshold"), level = find("level"), count = find("count"), chips = find("classes");
const rows = find("rows");
const SVG = "http://www.w3.org/2000/svg";
const entries = [];  // what was given, oldest first: {ticket, batch, name, file, state, answer, svg, error}
const hidden = new Set();  // names of classes that are not shown
let shown = null, wanted = null, running = null, tickets = 0, batches = 0, chosen = null, place = null;

const make = (tag, properties, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const say = (text, isWrong = false) => {
  says.textContent = text;
  says.classList.toggle("wrong", isWrong);
};

// Pictures: given, sent one after the other, answered.

function give(list, states = "waits") {
  const given = [...list];
  if (!given.length) return;
  batches += 1;
  say("");
  for (const file of given) {
    const entry = { ticket: ++tickets, batch: batches, name: file.name || "pasted.png", file, state: states };
    entries.push(entry);
    if (file.size > props.max_bytes) {
      const size = (file.size / 1e6).toFixed(1);
      const parts = { "{name}": entry.name, "{size}": size, "{most}": props.max_mb };
      failed(entry, props.too_many_bytes.replace(/{\w+}/g, (part) => parts[part]));
    }
  }
  next();
}

async function next() {
  drawStrip();
  const entry = running ? null : entries.find((one) => one.state === "waits");
  if (!entry) return;
  running = entry;
  entry.state = "runs";
  drawStrip();
  const ticket = entry.ticket;
  if (entry.answer) return trigger("again", { ticket, number: entry.answer.number });
  if (!entry.file.size && entry.file.isExample) return trigger("example", { ticket });
  try {
    // A name of its own, so that the files of two visitors never are one.
    const random = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16)).join("");
    const sent = await upload(new File([entry.file], random));
    props.value = { path: sent.path, orig_name: entry.name, meta: { _type: "gradio.FileData" } };
    trigger("picture", { ticket });
  } catch (error) {
    running = null;
    failed(entry, `${entry.name} did not arrive: ${error.message || error}`);
    next();
  }
}

function failed(entry, text) {
  say(text, true);
  entry.state = entry.answer ? "seen" : "failed";
  entry.error = text;
  entry.file = null;
}

function arrived(answer) {
  const entry = entries.find((one) => one.ticket === answer.ticket);
  if (running === entry) running = null;
  if (entry && answer.error) failed(entry, answer.error);
  else if (entry) {
    if (answer.note) say(answer.note);
    const isFirst = !shown || shown === entry || shown.batch !== entry.batch || wanted === entry;
    const svg = new DOMParser().parseFromString(answer.svg, "image/svg+xml").documentElement;
    Object.assign(entry, { state: "seen", answer, svg: document.importNode(svg, true), file: null });
    const seen = entries.filter((one) => one.state === "seen" && one !== shown);
    for (const old of seen.slice(0, -props.kept)) entries.splice(entries.indexOf(old), 1);
    if (isFirst) show(entry);
  }
  next();
}

function ended() {  // also without an answer, as when the server is gone or its queue full: the next one may go
  const entry = running;
  setTimeout(() => {
    if (!entry || running !== entry || entry.state !== "runs") return;
    running = null;
    failed(entry, `${entry.name}: no answer came. Give it again.`);
    next();
  }, 400);
}

function drawStrip() {
  strip.hidden = entries.length < 2;
  const signs = { waits: "…", runs: "◌", failed: "!" };
  strip.replaceChildren(...entries.map((entry) => {
    const image = entry.svg?.querySelector("image")?.getAttribute("href");
    const look = image ? make("img", { src: image, alt: "" })
      : make("span", { className: "sign", textContent: signs[entry.state] });
    const button = make("button", { type: "button", title: entry.error || entry.name }, look,
      make("span", { className: "name", textContent: entry.name }));
    button.classList.toggle("wrong", entry.state === "failed");
    button.setAttribute("aria-pressed", entry === shown);
    button.onclick = () => {
      if (entry.error) say(entry.error, true);
      if (entry.answer) show(entry); else wanted = entry;
    };
    return button;
  }));
}

drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
drop.ondragleave = () => drop.classList.remove("over");
drop.ondrop = (event) => { event.preventDefault(); drop.classList.remove("over"); give(event.dataTransfer.files); };
find("choose").onclick = () => files.click();
files.onchange = () => { give(files.files); files.value = ""; };
document.addEventListener("paste", (event) => give(event.clipboardData?.files || []));
const paste = find("paste");
paste.hidden = !navigator.clipboard?.read;
paste.onclick = async () => {
  try {
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find((one) => one.startsWith("image/"));
      if (type) return give([new File([await item.getType(type)], `pasted.${type.slice(6)}`)]);
    }
    say("There is no picture in the clipboard.", true);
  } catch {
    say("The browser does not hand over the clipboard: press Ctrl+V.", true);
  }
};
const example = find("example");
example.hidden = !props.example;
example.onclick = () => give([{ name: "digits_scene.png", size: 0, isExample: true }]);

// The camera.

function closeCamera() {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  viewer.hidden = true;
}
find("camera").onclick = async () => {
  if (!navigator.mediaDevices) return say("Browsers give a camera to https and to localhost alone.", true);
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    viewer.hidden = false;
  } catch (error) {
    say(`There is no camera to use: ${error.message}`, true);
  }
};
find("close").onclick = closeCamera;
find("shoot").onclick = () => {
  if (!video.videoWidth) return;
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  closeCamera();
  canvas.toBlob((blob) => give([new File([blob], "camera.jpg")]), "image/jpeg", 0.95);
};

// What is shown: all of it filtered here.

function show(entry) {
  forget();
  wanted = null;
  shown = entry;
  work.hidden = false;
  holder.replaceChildren(entry.svg);
  rows.replaceChildren(...entry.answer.objects.map((one, index) => {
    const dot = make("span", { className: "dot" });
    dot.style.background = one.color;
    const cells = [one.score.toFixed(2), ...one.box.map((edge) => edge.toFixed(0))];
    const row = make("tr", { tabIndex: 0 }, make("td", {}, dot, one.name),
      ...cells.map((text) => make("td", { textContent: text })));
    row.onclick = () => attend({ index });
    row.onkeydown = (event) => { if (event.key === "Enter") attend({ index }); };
    return row;
  }));
  entry.parts = entry.answer.objects.map((_, index) => ({
    drawn: [group(index), rows.children[index], ...entry.svg.querySelectorAll(`[data-of="${index}"]`)],
  }));
  drawStrip();
  filter();
}

const group = (index) => shown.svg.querySelector(`.object[data-index="${index}"]`);
const isKept = (one) => one.score > Math.fround(slider.value) && !hidden.has(one.name);

function filter() {
  level.textContent = Number(slider.value).toFixed(2);
  if (!shown) return;
  const { objects, best } = shown.answer, over = new Map();
  const least = Math.fround(slider.value);
  let kept = 0;
  objects.forEach((one, index) => {
    const isIn = isKept(one), parts = shown.parts[index];
    kept += isIn;
    if (one.score > least) {
      over.set(one.name, { color: one.color, number: (over.get(one.name)?.number || 0) + 1 });
    }
    if (isIn === parts.isIn) return;  // most stay as they are, and the browser has nothing to draw
    parts.isIn = isIn;
    for (const part of parts.drawn) part.style.display = isIn ? "" : "none";
  });
  if (chosen !== null && !isKept(objects[chosen])) forget();
  const digits = best?.score.toFixed(2) === level.textContent ? 4 : 2;  // as `BestBelow` says it
  const found = kept ? `${kept} object${kept > 1 ? "s" : ""}` : over.size ? "All classes are switched off"
    : `Nothing over ${Number(slider.value).toFixed(digits)}`
      + (best ? `; the best is ${best.score.toFixed(digits)} ${best.name}` : "");
  count.textContent = `${found} in ${shown.answer.name}, by ${shown.answer.model}`;
  const listed = [...over].sort((a, b) => b[1].number - a[1].number);
  const now = JSON.stringify([listed, [...hidden]]);
  if (chips.dataset.now === now) return;
  chips.dataset.now = now;
  chips.replaceChildren(...listed.map(([name, { color, number }]) => {
    const dot = make("span", { className: "dot" });
    dot.style.background = color;
    const chip = make("button", { type: "button" }, dot, `${name} ×${number}`);
    chip.dataset.name = name;
    chip.setAttribute("aria-pressed", !hidden.has(name));
    chip.onclick = () => {
      hidden.delete(name) || hidden.add(name);
      filter();
      [...chips.children].find((other) => other.dataset.name === name)?.focus();
    };
    return chip;
  }));
}
slider.oninput = filter;

for (const button of element.querySelectorAll("[data-save]")) {
  button.onclick = () => trigger("save", {
    number: shown.answer.number, kind: button.dataset.save, threshold: Number(slider.value),
    names: hidden.size ? [...new Set(shown.answer.objects.map((one) => one.name))].filter((name) => !hidden.has(name))
      : null,
  });
}

function keep(answer) {
  const link = make("a", { href: URL.createObjectURL(new Blob([answer.text])), download: answer.file });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Attention.

function forget() {
  if (!shown) return;
  shown.svg.classList.remove("seen");
  shown.svg.querySelectorAll(".heat, .place").forEach((part) => part.remove());
  element.querySelectorAll(".chosen").forEach((part) => part.classList.remove("chosen"));
  chosen = place = null;
  told.textContent = shown.answer.attention ? "Choose an object for what the model attended to, or a place beside them."
    : "";
}

function attend(what) {
  if (!shown) return;
  if (!shown.answer.attention) return say(`${shown.answer.model} is exported, and such a model gives no attention.`);
  if ("index" in what && what.index === chosen) return forget();
  trigger("attend", { ticket: shown.ticket, number: shown.answer.number, ...what });
}

function attended(answer) {
  if (answer.error) return say(answer.error, true);
  if (!shown || answer.number !== shown.answer.number) return;
  forget();
  const { width, height } = shown.answer, objects = shown.svg.querySelector(".objects");
  const add = (tag, attributes) => {
    const part = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
    objects.before(part);
  };
  add("image", { class: "heat", width, height, preserveAspectRatio: "none", href: answer.heat });
  shown.svg.classList.add("seen");
  told.textContent = answer.said;
  if ("index" in answer) {
    chosen = answer.index;
    group(chosen).classList.add("chosen");
    rows.children[chosen].classList.add("chosen");
  } else {
    const r = Math.max(width, height) / 90;
    place = [answer.x, answer.y];
    add("circle", { class: "place", cx: answer.x, cy: answer.y, r, fill: "#fff", stroke: "#000", "stroke-width": r / 2 });
  }
}

holder.onclick = (event) => {
  const object = event.target.closest(".object");
  if (object) return attend({ index: Number(object.dataset.index) });
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(shown.svg.getScreenCTM().inverse());
  const { width, height } = shown.answer;
  if (at.x >= 0 && at.y >= 0 && at.x < width && at.y < height) attend({ x: at.x, y: at.y });
};
holder.onkeydown = (event) => {
  const object = event.target.closest(".object");
  if (event.key === "Escape") return forget();
  if (object && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    return attend({ index: Number(object.dataset.index) });
  }
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.target !== holder || !shown || !(event.key in steps)) return;
  event.preventDefault();  // a place is moved by a twentieth of the picture
  const size = [shown.answer.width, shown.answer.height], from = place || size.map((side) => side / 2);
  const [x, y] = from.map((at, axis) => {
    const to = at + steps[event.key][axis] * Math.max(...size) / 20;
    return Math.min(Math.max(to, 0), size[axis] - 1);
  });
  attend({ x, y });
};

const receivers = { picture: arrived, attention: attended, file: (one) => one.error ? say(one.error, true) : keep(one) };
watch("value", () => receivers[props.value?.kind]?.(props.value));
document.addEventListener("detr-done", ended);
document.addEventListener("detr-model", () => {
  if (!shown || shown === running) return;
  shown.state = "waits";
  next();
});
filter();
