"use strict";
/* The page of `jzi serve`: photos are sent one after the other; map, sheet and overview are those of `jzi locate --map`. */
const drop = document.getElementById("drop"), file = document.getElementById("file");
const statusLine = document.getElementById("status");
const login = document.getElementById("login"), token = document.getElementById("token");
const BUSY = 5;  // times that a photo is sent again to a busy service
let working = false;  // whether a photo is being located

function setStatus(text, isError = false) {
  statusLine.textContent = text;
  statusLine.classList.toggle("error", isError);
}

const sleep = seconds => new Promise(resolve => setTimeout(resolve, 1000 * seconds));

/* Show what has changed of an entry, without moving the map. */
function refresh(entry) {
  if (current < 0) openOverview(false);
  else if (entries[current] === entry) openEntry(current, false);
  else drawNavigation();
}

function change(entry, values) {
  Object.assign(entry, values);
  refresh(entry);
}

/* Locate the photos that wait, one after the other. */
async function work() {
  if (working) return;
  working = true;
  let entry;
  while ((entry = entries.find(each => each.waiting))) {
    const query = priorQuery();
    if (!query) break;  // until the point is placed
    entry.waiting = false;
    await locate(entry, query);
  }
  working = false;
  if (current < 0 && entries.length > 1) openOverview();  // the map moves to all answers
}

async function locate(entry, query) {
  setStatus(`Locating ${entry.name} \u2026`);
  for (let attempt = 0; ; attempt++) {
    change(entry, {state: "Sending \u2026", share: 0, error: null, advice: null, page: null});
    const {status, answer, retryAfter} = await post(entry.file, query, share => {
      const state = share === null ? "Computing \u2026" : `Sending, ${Math.round(100 * share)} %`;
      if (state !== entry.state) change(entry, {state, share: share ?? undefined});
    });
    if (entry.waiting) return;  // the circle has changed
    if (status === 503 && attempt < BUSY) {
      change(entry, {state: `The service is busy: sent again in ${retryAfter} s`, share: undefined});
      await sleep(retryAfter);
      continue;
    }
    if (status === 200) {
      change(entry, {state: "done", page: answer.page});
      setStatus("");  // the sheet says the rest
      return entries.length > 1 ? null : animateZoom(entry);
    }
    if (status === 401) askToken();
    const advice = {0: REACH, 401: "Enter the token above."}[status];
    change(entry, {error: answer.detail, advice, retry: () => locateEntry(entry)});
    return setStatus("");  // the sheet, or the list, says why
  }
}

function locateEntry(entry) {
  entry.waiting = true;
  work();
}

/* Locate the photo that is shown again, or all if the overview is. */
function locateAgain() {
  const asked = current < 0 ? entries : [entries[current]];
  asked.forEach(entry => entry.waiting = true);
  work();
}

function add(files) {
  const photos = [...files];
  if (!photos.length) return;
  drop.classList.add("compact");
  document.getElementById("drop-text").textContent = "Add photos";
  if (entries.length === 1 && photos.length === 1 && !working) entries.length = 0;  // the page of one photo
  const first = entries.length;
  entries.push(...photos.map(photo => ({name: photo.name, file: photo, state: "Waiting", waiting: true})));
  if (entries.length > 1) openOverview(false); else openEntry(first, false);
  work();
}

/* Move the map through the steps of the zoom, one at a time. */
async function animateZoom(entry) {
  const page = entry.page, tiles = still.matches ? [] : page.features.filter(feature => feature.properties.kind === "tile");
  const here = () => entries[current] === entry && entry.page === page && !selected;
  for (const tile of tiles) {
    if (!here()) return;
    moveTo(L.geoJSON(tile).getBounds());
    await sleep(0.8);
  }
  if (here() && page.sure) moveTo(viewOf(page));
}

function askToken() {
  login.hidden = false;
  token.focus();
}

/* Load the area and its map, then accept photos. */
async function start() {
  let loaded;
  try {
    loaded = await ask("area");
  } catch {
    return setStatus(`${UNREACHABLE} ${REACH}`, true);
  }
  if (loaded.status === 401) askToken();
  if (loaded.status !== 200) return setStatus(loaded.answer.detail, true);
  setStatus("Photos are not stored.");
  startMap(loaded.answer, loadTile);
  startPrior();
  file.onchange = () => { add(file.files); file.value = ""; };
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, event => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop") add(event.dataTransfer.files);
    });
  }
  file.disabled = false;
}

login.onsubmit = event => {
  event.preventDefault();
  sessionStorage.setItem("token", token.value.trim());
  token.value = "";
  login.hidden = true;
  if (map) entries.filter(entry => entry.error).forEach(locateEntry); else start();
};
start();
