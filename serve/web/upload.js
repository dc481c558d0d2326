"use strict";
/* Requests to the service, with the token that it may ask for, which the tab keeps until it is closed. */
const UNREACHABLE = "The service cannot be reached.";
const REACH = "Check that jzi serve is running and that this device is in its network, then try again.";

function authorization() {
  const token = sessionStorage.getItem("token");
  return token ? {Authorization: `Bearer ${token}`} : {};
}

async function ask(path) {
  const response = await fetch(path, {headers: authorization()});
  const answer = await response.json().catch(() => ({detail: `The service returned status ${response.status}.`}));
  return {status: response.status, answer};
}

/* A tile of the imagery; null where there is none. */
async function loadTile({z, x, y}) {
  const response = await fetch(`tiles/${z}/${x}/${y}`, {headers: authorization()});
  if (response.status !== 200) return null;
  const image = await createImageBitmap(await response.blob());
  return [image, 0, 0, image.width];
}

/* Post a photo. `report` is called with the share that has been sent, 0..1, and with null while the service computes.
   Returns a promise of {status, answer, retryAfter}; status 0: the service cannot be reached. */
function post(photo, query, report) {
  const request = new XMLHttpRequest(), form = new FormData();
  form.append("photo", photo, photo.name);
  request.open("POST", `locate?${new URLSearchParams({details: true, ...query})}`);
  Object.entries(authorization()).forEach(([name, value]) => request.setRequestHeader(name, value));
  request.responseType = "text";
  request.upload.onprogress = event => report(event.lengthComputable ? event.loaded / event.total : null);
  request.upload.onload = () => report(null);
  return new Promise(resolve => {
    request.onerror = () => resolve({status: 0, answer: {detail: UNREACHABLE}});
    request.onload = () => {
      let answer = {detail: `The service returned status ${request.status}.`};
      try { answer = JSON.parse(request.responseText); } catch { /* not ours: a proxy's page */ }
      if (request.status !== 200 && typeof answer.detail !== "string") answer = {detail: "The request is not valid."};
      resolve({status: request.status, answer, retryAfter: Number(request.getResponseHeader("Retry-After")) || 5});
    };
    request.send(form);
  });
}
