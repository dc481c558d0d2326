"use strict";
/* The sheet of one photo: its answer, its candidates, what can be done with them, and how it was found. */
let shown = null, selected = 0;  // the photo, and the number of its candidate

/* Copy a text; browsers have a clipboard on this machine and over https alone, others the selection. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", "", {value: text, className: "offscreen"});
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function saveFile(name, content, type) {
  const link = element("a", "", {download: name, href: URL.createObjectURL(new Blob([content], {type}))});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function saveGeoJson(photos, name) {
  const features = photos.flatMap(photo => photo.features);
  saveFile(name, JSON.stringify({type: "FeatureCollection", features}), "application/geo+json");
}

const stem = name => name.split("/").pop().replace(/\.[^.]*$/, "") || "photo";

function actionRow(photo) {
  const row = element("div", "", {className: "actions"});
  const [latitude, longitude] = photo.candidates[selected].at.map(value => value.toFixed(6));
  const copy = element("button", "Copy", {type: "button", title: "Copy the coordinates"});
  copy.onclick = async () => {
    await copyText(`${latitude}, ${longitude}`);
    copy.textContent = "Copied";
    setTimeout(() => copy.textContent = "Copy", 2000);
  };
  const osm = element("a", "OpenStreetMap", {href: `https://www.openstreetmap.org/?mlat=${latitude}&mlon=${longitude}#map=19/${latitude}/${longitude}`,
    target: "_blank", rel: "noopener noreferrer"});
  const app = element("a", "Maps app", {href: `geo:${latitude},${longitude}?q=${latitude},${longitude}`, title: "Open in the map app of this device"});
  row.append(copy, osm, app);
  const file = element("button", "GeoJSON", {type: "button", title: "Save answer, candidates and circles as GeoJSON"});
  file.onclick = () => saveGeoJson([photo], `${stem(photo.name)}.geojson`);
  row.append(file);
  if (photo.heat_file) {
    const raster = element("button", "Heat map", {type: "button", title: "Save the probability of every cell as a GeoTIFF"});
    raster.onclick = () => {
      const bytes = Uint8Array.from(atob(photo.heat_file.split(",")[1]), character => character.charCodeAt(0));
      saveFile(`${stem(photo.name)}-heatmap.tif`, bytes, "image/tiff");
    };
    row.append(raster);
  }
  return row;
}

/* The selected place: the answer, or another candidate. */
function placeBlock(photo) {
  const block = element("div", "", {id: "place", className: "place"});
  block.setAttribute("aria-live", "polite");
  const add = (text, className) => text && block.append(element("div", text, {className}));
  if (!photo.sure) {
    add("Not sure", "answer");
    add(`The best answer has ${photo.confidence}, too little to give its position.`, "note");
    return block;
  }
  const place = photo.candidates[selected];
  const answer = photo.elsewhere ? "Probably from elsewhere; if not, here" : "Answer";
  add(selected ? `Candidate ${selected + 1} of ${photo.candidates.length}` : answer, "eyebrow");
  add(place.text, "answer");
  if (selected) {
    add(place.share, "note");
    const back = element("button", "Back to the answer", {type: "button", className: "link"});
    back.onclick = () => select(0);
    block.append(back);
    return block;
  }
  add(photo.confidence, "confidence");
  add(photo.spread, "note");
  add(photo.error, "note");
  return block;
}

function candidateList(photo) {
  const list = element("ol", "", {className: "candidates"});
  list.setAttribute("aria-label", "Candidates");
  photo.candidates.forEach((candidate, index) => {
    const item = element("li"), button = element("button", "", {type: "button"});
    button.append(element("i", "", {className: `key ${index ? "candidate" : "answer"}-key`}),
      element("span", candidate.text, {className: "grow"}), element("span", candidate.share));
    button.onclick = () => select(index);
    item.append(button); list.append(item);
  });
  list.addEventListener("keydown", event => {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step) return;
    event.preventDefault();
    select(Math.min(Math.max(selected + step, 0), photo.candidates.length - 1));
    list.querySelectorAll("button")[selected].focus();
  });
  return list;
}

/* Select a candidate: the sheet shows it, and the map moves to it. */
function select(index, move = true) {
  if (!shown?.candidates[index]) return;
  selected = index;
  document.getElementById("place").replaceWith(placeBlock(shown));
  document.querySelector("#about .actions").replaceWith(actionRow(shown));
  document.querySelectorAll(".candidates button").forEach((button, at) => {
    if (at === index) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
  });
  const at = shown.candidates[index].at;
  markPlace(at);
  if (!move) return;
  if (!index) return moveTo(viewOf(shown));
  const zoom = Math.min(Math.max(map.getZoom(), shown.fix ? 19 : 17.5), 21);
  if (still.matches) map.setView(at, zoom, {animate: false}); else map.flyTo(at, zoom, {duration: 0.7});
}

/* The values of an answer to metres. */
function fixList(fix) {
  const list = element("dl", "", {className: "fix"});
  const add = (name, text, note) => {
    const value = element("dd", text);
    if (note) value.append(element("div", note, {className: "note"}));
    list.append(element("dt", name), value);
    return value;
  };
  add("Ellipse", fix.ellipse, `${fix.spread}; ${fix.near}`);
  for (const direction of fix.directions) {
    const arrow = element("span", "\u2191", {className: "arrow"});
    arrow.style.transform = `rotate(${direction.deg}deg)`;
    add("Heading", direction.text).prepend(arrow);
  }
  if (!fix.heading_known) add("Heading", "unknown");
  return list;
}

/* What a re-ranker said of the candidates: a row for each, and a square for each comparison, named by the other's rank. */
function comparisonTable(rows) {
  const box = element("details", "", {className: "compared", open: true});
  box.append(element("summary", "Candidates compared"));
  const table = element("table"), head = element("tr");
  for (const name of ["", "before", "after", "score", "compared with"]) head.append(element("th", name));
  table.append(head);
  for (const row of rows) {
    const line = element("tr"), against = element("td"), place = element("td", `${row.rank} `);
    if (row.image) place.append(element("img", "", {src: row.image, alt: `Surroundings of candidate ${row.rank}`}));
    line.append(place);
    for (const name of ["before", "after", "score"]) line.append(element("td", row[name]));
    for (const each of row.against) {
      const verdict = each.won === null ? "none" : each.won ? "won" : "lost";
      const word = {won: "preferred to", lost: "less than", none: "not decided against"}[verdict];
      const title = `${word} ${each.rank}: ${each.text}${each.unsure ? ", the two orders disagree" : ""}`;
      against.append(element("span", String(each.rank), {className: `versus ${verdict}${each.unsure ? " unsure" : ""}`, title}));
    }
    line.append(against); table.append(line);
  }
  box.append(table, element("div", "Green: preferred to that candidate; red: less; dashed: it depended on the order in which the two were shown.",
    {className: "note"}));
  return box;
}

function zoomSteps(photo) {
  const box = element("details", "", {className: "steps", open: innerWidth >= 760});
  const zoom = element("div", "", {className: "zoom"});
  for (const step of photo.zoom) {
    const figure = element("figure"), tile = element("div", "", {className: "tile"});
    tile.append(element("img", "", {src: step.image, alt: step.caption}));
    const child = element("div", "", {className: "child"}), size = 100 / data.grid;
    Object.assign(child.style, {left: `${size * (step.action % data.grid)}%`, width: `${size}%`,
      top: `${size * Math.floor(step.action / data.grid)}%`, height: `${size}%`});
    tile.append(child); figure.append(tile, element("figcaption", step.caption)); zoom.append(figure);
  }
  box.append(element("summary", "Steps of the zoom"), zoom);
  return box;
}

/* The photo, which a click enlarges. */
function photoButton(photo) {
  const button = element("button", "", {type: "button", className: "photo", title: "Enlarge the photo"});
  button.append(element("img", "", {src: photo.image, alt: `Photo ${photo.name}`}));
  button.onclick = () => {
    const large = document.getElementById("large");
    large.replaceChildren(element("img", "", {src: photo.image, alt: photo.name}), element("button", "Close", {type: "button", onclick: () => large.close()}));
    large.showModal();
  };
  return button;
}

/* Show a photo on the map and in the sheet. */
function showPhoto(photo) {
  shown = photo; selected = 0;
  drawPhoto(photo);
  const about = document.getElementById("about"), top = element("div", "", {className: "top"});
  top.append(placeBlock(photo), photoButton(photo));
  about.replaceChildren(top);
  const warns = photo.notes.length > 0 || photo.elsewhere;
  const remarks = element("ul", "", {className: warns ? "remarks" : "remarks plain"});
  if (photo.inside) remarks.append(element("li", `Probability that the photo is from this area: ${photo.inside}`));
  photo.notes.forEach(note => remarks.append(element("li", note)));
  if (remarks.children.length) about.append(remarks);
  if (photo.sure) about.append(actionRow(photo));
  const more = document.getElementById("more");
  more.replaceChildren();
  if (photo.fix) more.append(fixList(photo.fix));
  if (photo.candidates.length > 1) more.append(element("h2", "Candidates"), candidateList(photo));
  if (photo.comparisons.length) more.append(comparisonTable(photo.comparisons));
  if (photo.zoom.length) more.append(zoomSteps(photo));
  if (photo.sure) select(0, false);
}
onPlace = index => select(index);
document.addEventListener("keydown", event => {
  if (event.key !== "Escape" || document.getElementById("large").open) return;
  if (shown && selected) select(0); else document.getElementById("back")?.click();
});
